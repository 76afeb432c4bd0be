// The reference: what every other kernel set is tested against.
//
// Products are loops of their own; all other kernels share the loops of the vectorized sets, with vectors of one value.
#include <cmath>

#include "kernels/generic/make_kernel_set.h"

namespace binaryvit {
namespace {

int32_t Count(const uint32_t* row, const uint32_t* weights, size_t words) {
  int32_t count = 0;
  for (size_t word = 0; word < words; ++word) count += __builtin_popcount(row[word] ^ weights[word]);
  return count;
}

void CountByLoops(const Rows& rows, const Weights& weights, int32_t* output, size_t stride) {
  for (size_t row = 0; row < rows.count; ++row) {
    for (size_t unit = 0; unit < weights.units; ++unit) {
      const uint32_t* packed = weights.data + unit * weights.words;
      output[row * stride + unit] = Count(rows.data + row * rows.stride, packed, weights.words);
    }
  }
}

void MultiplyByLoops(const Rows& rows, const Weights& weights, const Affine& affine, float* output, size_t stride) {
  for (size_t row = 0; row < rows.count; ++row) {
    for (size_t unit = 0; unit < weights.units; ++unit) {
      const uint32_t* packed = weights.data + unit * weights.words;
      int32_t x = Count(rows.data + row * rows.stride, packed, weights.words);
      if (affine.clamped) {
        x *= 2;
        if (x > affine.clamp_max) x = affine.clamp_max;
        if (x < affine.clamp_min) x = affine.clamp_min;
      }
      output[row * stride + unit] = static_cast<float>(x) * affine.multiplier[unit] + affine.bias[unit];
    }
  }
}

struct Simd {
  using Float = float;
  using Int = int32_t;
  using Mask = bool;
  static constexpr size_t kLanes = 1;
  static constexpr bool kHasMultiplyAdd = true;

  static Float Load(const float* from) { return *from; }
  static Int Load(const int32_t* from) { return *from; }
  static void Store(float* to, Float x) { *to = x; }
  static void Store(int32_t* to, Int x) { *to = x; }
  static Float Set(float x) { return x; }
  static Int Set(int32_t x) { return x; }
  static Float Add(Float a, Float b) { return a + b; }
  static Int Add(Int a, Int b) { return a + b; }
  static Int Subtract(Int a, Int b) { return a - b; }
  static Float Multiply(Float a, Float b) { return a * b; }
  // a * b + c, rounded once; only where kHasMultiplyAdd.
  static Float MultiplyAdd(Float a, Float b, Float c) { return __builtin_fmaf(a, b, c); }
  static Int Min(Int a, Int b) { return a < b ? a : b; }
  static Int Max(Int a, Int b) { return a > b ? a : b; }
  static Float ToFloat(Int x) { return static_cast<float>(x); }
  static Mask Less(Float a, Float b) { return a < b; }
  static Mask Less(Int a, Int b) { return a < b; }
  static Int AddLess(Int count, Int a, Int b) { return count + (a < b); }
  // Values 0, 2, 4, ... of a and b together, and values 1, 3, 5, ...
  static void Deinterleave(Float a, Float b, Float* even, Float* odd) { *even = a, *odd = b; }
  // Values 0, 4, 8, ... of the next 4 * kLanes, then 1, 5, 9, ... and so on.
  static void LoadQuarters(const float* from, Float (&quarters)[4]) { QuartersByHalves<Simd>(from, quarters); }
  // Sets of four lanes or more have LoadFours(const float* from, size_t stride): four values from `from` on, from
  // from + stride on, and so on.
  // `slope` times x where the sign bit of x is set.
  static Float Prelu(Float x, Float slope) { return std::signbit(x) ? x * slope : x; }
  // The same in fewer steps, where HasSmallSlopes is true.
  static Float PreluByMax(Float x, Float slope) { return x * slope > x ? x * slope : x; }
  // Sets whose Tile has kPushesSigns have PushLess(Int bits, Float x, Float limit) as well: it moves the bits down by one
  // and puts on top whether x is below the limit.
};

struct Tile {
  static constexpr size_t kUnits = 1, kWordGroup = 1, kHiddenUnits = 1;
  static constexpr int kRows = 1, kBlocks = 1;
  static constexpr size_t kInterleavedSize = 0;
  static constexpr bool kPushesSigns = false, kUnrollsWords = false;

  template <int rows, int vectors, int constant_words, bool>
  static void Count(const uint32_t* activations, size_t, const uint32_t* weights, size_t words,
                    int32_t (&counts)[rows][vectors]) {
    counts[0][0] = binaryvit::Count(activations, weights, words);
  }
};

struct Isa {
  using Simd = binaryvit::Simd;
  using Tile = binaryvit::Tile;

  template <int vectors>
  static void StoreMasks(const bool (&masks)[vectors], uint32_t* bits, size_t i) {
    uint32_t& word = bits[i / kBitsPerWord];
    if (i % kBitsPerWord == 0) word = 0;
    for (size_t v = 0; v < vectors; ++v) word |= static_cast<uint32_t>(masks[v]) << (i % kBitsPerWord + v);
  }

  static void StoreBytes(uint8_t* to, const int32_t (&counts)[1]) { *to = static_cast<uint8_t>(counts[0]); }

  static void PackBytesBelow(const uint8_t* counts, uint8_t limit, size_t blocks, uint32_t* bits) {
    for (size_t word = 0; word < 2 * blocks; ++word) bits[word] = 0;
    for (size_t i = 0; i < blocks * kBytesPerBlock; ++i) {
      bits[i / kBitsPerWord] |= static_cast<uint32_t>(counts[i] < limit) << (i % kBitsPerWord);
    }
  }

  static void SumExponentials(const uint8_t* counts, size_t rows, size_t blocks, const Probabilities& table, uint8_t* least,
                              int32_t* sums) {
    for (size_t row = 0; row < rows; ++row, counts += blocks * kBytesPerBlock) {
      least[row] = UINT8_MAX;
      for (size_t i = 0; i < blocks * kBytesPerBlock; ++i) least[row] = counts[i] < least[row] ? counts[i] : least[row];
      sums[row] = 0;
      for (size_t i = 0; i < blocks * kBytesPerBlock; ++i) {
        size_t index = static_cast<size_t>(counts[i] - least[row]);
        if (index >= Probabilities::kSize) index = Probabilities::kSize - 1;
        sums[row] += table.low[index] + 256 * table.high[index];
      }
    }
  }
};

constexpr KernelSet MakeScalarKernels() {
  KernelSet kernels = MakeKernelSet<Isa>("scalar");
  kernels.multiply = MultiplyByLoops;
  kernels.count = CountByLoops;
  return kernels;
}

}  // namespace

const KernelSet kScalarKernels = MakeScalarKernels();

}  // namespace binaryvit
