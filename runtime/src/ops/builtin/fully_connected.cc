// LiteRT's FULLY_CONNECTED with computed weights: the product of two activations, as in an attention of LCE's graphs.
// In a binary network each operand holds two values: +-1, or 0 and a constant. The graph doesn't say so, so the operator
// checks the data: it packs rows that hold two values into bits and multiplies those. It multiplies all others as floats.
//
// With rows of {a, b} and weights of {c, d}, p and q how many of a row's and a unit's `depth` values are b and d, and n in how
// many places the bits differ, both are b and d in (p + q - n) / 2 places. So the product is
//
//   n * -(b-a)(d-c)/2  +  [depth * ac + q * (d-c)(a+b)/2]  +  p * (b-a)(c+d)/2
//
// where the last term is zero for weights of +-d. Sums of +-1 are exact. Others differ from LiteRT's by the rounding of
// these three terms, each at most depth times the largest product of two values; sums of real numbers by their order.
#include <cmath>

#include "ops/builtin/clamp.h"
#include "ops/op.h"

namespace binaryvit {
namespace {

constexpr size_t kRowsPerTask = 64;
constexpr size_t kRowAlignment = 8;                // rows of the largest tile
constexpr size_t kScratchWords = size_t{1} << 17;  // half a megabyte
constexpr size_t kChunkWords = 32;                 // of values that are packed in one go
constexpr size_t kChunk = kChunkWords * kBitsPerWord;

// The values of an operand with no more than two: `high` is a clear bit, `low` a set one.
struct Pair {
  float high;
  float low;
  float Bound() const { return std::fabs(high) + std::fabs(low); }  // of the values; of a NaN, NaN
};

bool HoldsOnly(const float* values, size_t count, Pair pair) {
  while (count > 0) {
    const size_t size = count < kChunk ? count : kChunk;
    int others = 0;
    for (size_t i = 0; i < size; ++i) others |= (values[i] != pair.high) & (values[i] != pair.low);
    if (others) return false;
    values += size;
    count -= size;
  }
  return true;
}

// The first value and the first other one.
Pair FirstTwo(const float* values, size_t count) {
  const float first = values[0];
  size_t i = 0;
  while (count - i >= kChunk && HoldsOnly(values + i, kChunk, {first, first})) i += kChunk;
  while (i < count && values[i] == first) ++i;
  const float other = i < count ? values[i] : first;
  return first < other ? Pair{other, first} : Pair{first, other};
}

struct FullyConnected {
  static bool Supports(const NodeView& node);
  bool Prepare(const NodeView& node, const Options&);
  bool Invoke(const NodeView& node);

 private:
  struct Scratch {
    Buffer<uint32_t> stream;  // bits without gaps between rows
    Buffer<uint32_t> bits;
  };

  bool ReadShapes(const NodeView& node);
  bool Reserve(const NodeView& node);
  bool PackUnits(const KernelSet& kernels, const float* weights);
  bool ChooseValues(const float* input);
  void Pack(const KernelSet& kernels, const float* values, size_t count, Pair pair, uint32_t* stream,
            uint32_t* bits) const;
  void Finish(size_t count, const uint32_t* bits, const float* bias, float* output) const;

  size_t Words() const { return WordsFor(depth); }
  bool IsWhole() const { return depth % kBitsPerWord == 0; }

  // Shapes.
  size_t rows = 0, units = 0, depth = 0;
  size_t rows_per_task = 0;
  Clamp clamp;

  // Of one run.
  Pair row_values = {}, unit_values = {};
  float row_factor = 0;  // of the number of a row's set bits
  Buffer<uint32_t> unit_stream, unit_bits, packed;
  Buffer<float> multiplier, bias_of_unit;

  Scratch scratch[kMaxThreads];
};

bool HasNoZero(const litert::IntArray& dims) {
  for (int i = 0; i < dims.size; ++i) {
    if (dims.data[i] < 1) return false;
  }
  return true;
}

// LiteRT keeps other types and other activations; constant weights are a head's, or LiteRT's.
bool FullyConnected::Supports(const NodeView& node) {
  const auto* params = static_cast<const litert::FullyConnectedParams*>(node.BuiltinData());
  const int inputs = node.InputCount();
  if (!params || params->weights_format != 0 || !Clamp().Read(params->activation) || (inputs != 2 && inputs != 3) ||
      node.OutputCount() != 1) {
    return false;
  }
  const litert::Tensor* input = node.Input(0);
  const litert::Tensor* weights = node.Input(1);
  if (!IsFloat(input) || !IsFloat(weights) || !IsFloat(node.Output(0)) || weights->dims->size != 2 ||
      input->dims->size < 1 || input->dims->size > kMaxRank || !HasNoZero(*weights->dims) || !HasNoZero(*input->dims)) {
    return false;
  }
  if (inputs == 3 && node.HasInput(2)) {
    const litert::Tensor* bias = node.Input(2);
    if (!IsFloat(bias) || bias->dims->size != 1 || bias->dims->data[0] != weights->dims->data[0]) return false;
  }
  return true;
}

bool FullyConnected::ReadShapes(const NodeView& node) {
  const auto& params = *static_cast<const litert::FullyConnectedParams*>(node.BuiltinData());
  const litert::Tensor* input = node.Input(0);
  const litert::Tensor* weights = node.Input(1);
  if (!node.CheckType(input, "input", litert::kFloat32) || !node.CheckType(weights, "weights", litert::kFloat32) ||
      !node.CheckType(node.Output(0), "output", litert::kFloat32)) {
    return false;
  }
  const int rank = input->dims ? input->dims->size : 0;
  if (rank < 1 || rank > kMaxRank) return node.Fail("the input must have 1 to %d dimensions, but has %d", kMaxRank, rank);
  if (!node.CheckRank(input, "input", rank) || !node.CheckRank(weights, "weights", 2)) return false;
  units = static_cast<size_t>(weights->dims->data[0]);
  depth = static_cast<size_t>(weights->dims->data[1]);
  size_t elements = 1;
  for (int i = 0; i < rank; ++i) {
    if (__builtin_mul_overflow(elements, static_cast<size_t>(input->dims->data[i]), &elements)) {
      return node.Fail("the input is too large");
    }
  }
  const int last = input->dims->data[rank - 1];
  if (params.keep_num_dims && static_cast<size_t>(last) != depth) {
    return node.Fail("the last dimension of the input must be %zu, as the weights', but is %d", depth, last);
  }
  if (elements % depth != 0) {
    return node.Fail("the input has %zu values, which don't split into rows of %zu, as the weights have", elements, depth);
  }
  rows = elements / depth;
  if (node.InputCount() == 3 && node.HasInput(2)) {
    const litert::Tensor* bias = node.Input(2);
    if (!node.CheckType(bias, "bias", litert::kFloat32) || !node.CheckShape(bias, "bias", {units})) return false;
  }
  clamp.Read(params.activation);
  int64_t dims[kMaxRank] = {static_cast<int64_t>(rows), static_cast<int64_t>(units)};
  if (!params.keep_num_dims) return node.ResizeOutput(0, dims, 2);
  for (int i = 0; i < rank - 1; ++i) dims[i] = input->dims->data[i];
  dims[rank - 1] = static_cast<int64_t>(units);
  return node.ResizeOutput(0, dims, rank);
}

bool FullyConnected::Reserve(const NodeView& node) {
  const KernelSet& kernels = *node.session.kernels;
  const auto threads = static_cast<size_t>(node.session.pool.threads());
  rows_per_task = kRowsPerTask;
  if (threads > 1) {  // several tasks per thread, so that none waits long for another
    const size_t share = RoundUp(rows / (4 * threads) + 1, kRowAlignment);
    if (share < rows_per_task) rows_per_task = share;
  }
  while (rows_per_task > kRowAlignment && rows_per_task * Words() > kScratchWords) rows_per_task /= 2;

  // Each stream has one more word, because rows are extracted two words at a time.
  const size_t tiled = RoundUp(units, kernels.unit_tile);
  if (!unit_stream.Resize(IsWhole() ? 0 : WordsFor(units * depth) + 1) || !unit_bits.Resize(units * Words()) ||
      !packed.Resize(PackedWords(units, Words(), kernels.unit_tile, kernels.word_group)) ||
      !multiplier.Resize(tiled) || !bias_of_unit.Resize(tiled)) {
    return false;
  }
  for (size_t thread = 0; thread < threads; ++thread) {
    if (!scratch[thread].stream.Resize(IsWhole() ? 0 : WordsFor(rows_per_task * depth) + 1) ||
        !scratch[thread].bits.Resize(rows_per_task * Words())) {
      return false;
    }
  }
  return true;
}

bool FullyConnected::Prepare(const NodeView& node, const Options&) {
  const int inputs = node.InputCount();
  if (!node.CheckCounts(inputs == 3 ? 3 : 2, 1) || !ReadShapes(node)) return false;
  return Reserve(node) || node.FailForMemory();
}

// Bits of `count` rows, the last word of each padded with zeros.
void FullyConnected::Pack(const KernelSet& kernels, const float* values, size_t count, Pair pair, uint32_t* stream,
                          uint32_t* bits) const {
  float limits[kChunk];
  for (float& limit : limits) limit = pair.high;
  const size_t total = count * depth, whole = total / kBitsPerWord;
  uint32_t* to = IsWhole() ? bits : stream;
  for (size_t word = 0; word < whole; word += kChunkWords) {
    const size_t size = whole - word < kChunkWords ? whole - word : kChunkWords;
    kernels.pack_below(values + word * kBitsPerWord, limits, size, to + word);
  }
  if (IsWhole()) return;
  uint32_t rest = 0;
  for (size_t i = whole * kBitsPerWord; i < total; ++i) {
    rest |= static_cast<uint32_t>(values[i] < pair.high) << (i % kBitsPerWord);
  }
  stream[whole] = rest;
  stream[WordsFor(total)] = 0;

  const uint32_t mask = UINT32_MAX >> (kBitsPerWord - depth % kBitsPerWord);
  for (size_t row = 0; row < count; ++row, bits += Words()) {
    for (size_t word = 0; word < Words(); ++word) {
      const size_t first = row * depth + word * kBitsPerWord;
      const uint32_t* from = stream + first / kBitsPerWord;
      bits[word] = static_cast<uint32_t>((from[0] | static_cast<uint64_t>(from[1]) << 32) >> (first % kBitsPerWord));
    }
    bits[Words() - 1] &= mask;
  }
}

// Sets the rows' two values; false where a product with the units' isn't finite, or may not be.
bool FullyConnected::ChooseValues(const float* input) {
  row_values = FirstTwo(input, rows * depth);
  const float bound = row_values.Bound() * unit_values.Bound() * static_cast<float>(depth);
  return bound < 1e37f;  // false for a NaN, too
}

// Packs the weights where they hold two values.
bool FullyConnected::PackUnits(const KernelSet& kernels, const float* weights) {
  unit_values = FirstTwo(weights, units * depth);
  if (!HoldsOnly(weights, units * depth, unit_values)) return false;
  Pack(kernels, weights, units, unit_values, unit_stream.data(), unit_bits.data());
  PackRows(unit_bits.data(), Words(), units, Words(), kernels.unit_tile, kernels.word_group, packed.data());
  return true;
}

int64_t CountBits(const uint32_t* bits, size_t words) {
  int64_t count = 0;
  for (size_t word = 0; word < words; ++word) count += __builtin_popcount(bits[word]);
  return count;
}

bool FullyConnected::Invoke(const NodeView& node) {
  const auto* input = static_cast<const float*>(node.Input(0)->data);
  const auto* weights = static_cast<const float*>(node.Input(1)->data);
  const bool has_bias = node.InputCount() == 3 && node.HasInput(2);
  const auto* bias = has_bias ? static_cast<const float*>(node.Input(2)->data) : nullptr;
  auto* output = static_cast<float*>(node.Output(0)->data);
  const KernelSet& kernels = *node.session.kernels;

  const bool has_pairs = PackUnits(kernels, weights) && ChooseValues(input);
  if (has_pairs) {
    const double a = row_values.high, b = row_values.low, c = unit_values.high, d = unit_values.low;
    row_factor = static_cast<float>((b - a) * (c + d) / 2);
    for (size_t unit = 0; unit < units; ++unit) {
      const auto set = static_cast<double>(CountBits(unit_bits.data() + unit * Words(), Words()));
      multiplier[unit] = static_cast<float>((b - a) * (d - c) / -2);
      bias_of_unit[unit] = static_cast<float>(static_cast<double>(depth) * a * c + set * (d - c) * (a + b) / 2);
    }
  }
  const Weights packed_weights = {packed.data(), units, Words()};
  const Affine affine = {multiplier.data(), bias_of_unit.data(), false, 0, 0};
  node.session.pool.ParallelFor((rows + rows_per_task - 1) / rows_per_task, [&](size_t task, int thread) {
    const size_t first = task * rows_per_task;
    const size_t count = rows - first < rows_per_task ? rows - first : rows_per_task;
    const float* values = input + first * depth;
    float* to = output + first * units;
    if (has_pairs && HoldsOnly(values, count * depth, row_values)) {
      Scratch& own = scratch[thread];
      Pack(kernels, values, count, row_values, own.stream.data(), own.bits.data());
      kernels.multiply({own.bits.data(), Words(), count}, packed_weights, affine, to, units);
      Finish(count, row_factor != 0 ? own.bits.data() : nullptr, bias, to);
    } else {
      kernels.multiply_floats(values, weights, count, units, depth, to, units);
      Finish(count, nullptr, bias, to);
    }
  });
  return true;
}

// Adds the term of each row's bits and the bias, if any, and applies the activation.
void FullyConnected::Finish(size_t count, const uint32_t* bits, const float* bias, float* output) const {
  for (size_t row = 0; row < count && (bits || bias); ++row) {
    float* to = output + row * units;
    if (bits) {
      const float term = static_cast<float>(CountBits(bits + row * Words(), Words())) * row_factor;
      for (size_t unit = 0; unit < units; ++unit) to[unit] += term;
    }
    for (size_t unit = 0; bias && unit < units; ++unit) to[unit] += bias[unit];
  }
  clamp.Apply(output, count * units);
}

}  // namespace

const OpType kFullyConnected = MakeBuiltinOpType<FullyConnected>("FULLY_CONNECTED", litert::kBuiltinFullyConnected);

}  // namespace binaryvit
