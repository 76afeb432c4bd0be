// BinaryVitAttention: a whole binary self-attention. It computes keys and values first, and then a few queries at a time from
// the input to the output, so that their values stay in the cache.
//
// A row of the binary attention is a mask of bits, by ProbabilityLimit, and a value a column of bits: with a in {0, 1} and
// v = +-1, the sum of a * v is the number of bits in which mask and column differ, less the column's own number of bits.
#include "ops/fused/probability_limit.h"
#include "ops/fused/projection.h"
#include "ops/op.h"

namespace binaryvit {
namespace {

enum Kernel : size_t { kQuery, kKey, kValue, kOutput, kReduced, kKernels };

// Rows of the table of parameters.
constexpr size_t kScaleRow = 0, kKernelRows = 1, kThresholdRows = 17, kContextRows = 20, kOutputRows = 23,
                 kReducedRows = 25, kRows = 25, kRowsWithReduced = 29;

struct Attention {
  bool Prepare(const NodeView& node, const Options& options);
  bool Invoke(const NodeView& node);

 private:
  bool ReadShapes(const NodeView& node, const Options& options);
  bool Pack(const NodeView& node);
  bool Reserve(const NodeView& node);
  void ComputeKeys(const KernelSet& kernels, const float* x, size_t first, size_t count, int thread);
  void PackHead(const KernelSet& kernels, size_t head);
  void ComputeQueries(const KernelSet& kernels, const float* x, float* output, size_t first, size_t count, int thread);
  void ComputeMasks(const KernelSet& kernels, size_t head, size_t count, int thread);
  bool CopyByHead(const float* row, Buffer<float>* padded) const;
  bool CopyLimitsByHead(const float* thresholds, Buffer<float>* limits) const;
  bool PackProjection(const NodeView& node, Kernel kernel);

  // Inside, each head begins at a whole word. `Width` includes padding if head_dim isn't a multiple of 32.
  size_t HeadWidth() const { return PaddedWidth(head_dim); }
  size_t HeadWords() const { return WordsFor(head_dim); }
  size_t Width() const { return heads * HeadWidth(); }
  size_t Words() const { return heads * HeadWords(); }
  size_t Queries() const { return height * width; }
  size_t KeyWords() const { return WordsFor(key_count); }
  size_t KeyBlocks() const { return (key_count + kBytesPerBlock - 1) / kBytesPerBlock; }
  size_t MaskWords() const { return KeyBlocks() * kBytesPerBlock / kBitsPerWord; }  // allocated
  bool IsPadded() const { return head_dim != HeadWidth(); }
  void PadRows(const float* from, size_t count, float* to) const {
    CopyRows(from, head_dim, head_dim, count * heads, to, HeadWidth());
  }

  size_t heads = 1, reduction = 1;
  int has_residual = 0;
  size_t batch = 0, height = 0, width = 0, channels = 0;
  size_t head_dim = 0, key_count = 0;

  // Constants.
  bool packed = false;
  PackedProjection projections[kKernels];
  Buffer<float> input_limits[kKernels];  // of the signs that the kernel multiplies
  Buffer<float> scale, natural_scale;  // with and without gaps between heads
  Buffer<float> context_scale, context_bias, context_slope;
  bool small_context_slopes = false;
  ProbabilityLimit limit;

  // Of the current image.
  Buffer<float> shortcuts;      // key + value of each position of the keys
  Buffer<uint32_t> key_bits;    // of each position
  Buffer<uint32_t> value_bits;  // the same
  Buffer<uint32_t> keys;        // of each head, packed
  Buffer<uint32_t> values;      // of each head: its channels' bits of all keys, packed
  Buffer<int32_t> value_sums;   // set bits of each channel
  Buffer<uint32_t> key_of_query;  // of the square in which a query lies
  size_t key_stride = 0;        // from one head's keys to the next one's
  size_t value_stride = 0;

  // Of each thread.
  struct Scratch {
    Buffer<float> reals;  // maps of kRowsPerTask rows: see the functions that compute
    Buffer<uint32_t> bits;
    Buffer<uint32_t> signs;
    Buffer<int32_t> counts;
    Buffer<uint8_t> byte_counts;  // instead of `counts`, where the limit takes bytes
    Buffer<uint32_t> masks;
  };
  Scratch scratch[kMaxThreads];
};

bool Attention::ReadShapes(const NodeView& node, const Options& options) {
  int read_heads, read_reduction;
  if (!node.CheckCounts(4, 1) || !node.ReadOption(options, "heads", 1, INT32_MAX, &read_heads) ||
      !node.ReadOption(options, "reduction", 1, INT32_MAX, &read_reduction) ||
      !node.ReadOption(options, "residual", 0, 1, &has_residual)) {
    return false;
  }
  const litert::Tensor* x = node.Input(0);
  if (!node.CheckType(x, "input", litert::kFloat32) || !node.CheckRank(x, "input", 4)) return false;
  const int* dims = x->dims->data;
  if (dims[3] % read_heads != 0) return node.Fail("%d heads don't divide %d channels", read_heads, dims[3]);
  if (dims[1] % read_reduction != 0 || dims[2] % read_reduction != 0) {
    return node.Fail("a reduction of %d doesn't divide the map of %d x %d", read_reduction, dims[1], dims[2]);
  }
  heads = static_cast<size_t>(read_heads);
  reduction = static_cast<size_t>(read_reduction);
  batch = static_cast<size_t>(dims[0]);
  height = static_cast<size_t>(dims[1]);
  width = static_cast<size_t>(dims[2]);
  channels = static_cast<size_t>(dims[3]);
  head_dim = channels / heads;
  key_count = (height / reduction) * (width / reduction);
  const bool reduces = reduction > 1;
  const size_t kernels = reduces ? kKernels : kReduced;
  return node.CheckTable(node.Input(1), "kernels", litert::kInt32, {kernels, channels, WordsFor(channels)}) &&
         node.CheckTable(node.Input(2), "parameters", litert::kFloat32, {reduces ? kRowsWithReduced : kRows, channels}) &&
         node.CheckTable(node.Input(3), "probability_threshold", litert::kFloat32, {1});
}

bool Attention::CopyByHead(const float* row, Buffer<float>* padded) const {
  if (!padded->Resize(Width())) return false;
  for (size_t c = 0; c < channels; ++c) (*padded)[c / head_dim * HeadWidth() + c % head_dim] = row[c] + 0.0f;
  return true;
}

bool Attention::CopyLimitsByHead(const float* thresholds, Buffer<float>* limits) const {
  if (!CopyByHead(thresholds, limits)) return false;
  for (size_t i = 0; i < Width(); ++i) (*limits)[i] = -(*limits)[i];
  return true;
}

bool Attention::PackProjection(const NodeView& node, Kernel kernel) {
  const size_t source_words = WordsFor(channels);
  const auto* source = static_cast<const uint32_t*>(node.Input(1)->data) + kernel * channels * source_words;
  const auto* table = static_cast<const float*>(node.Input(2)->data);
  const size_t first = kernel == kReduced ? kReducedRows : kKernelRows + 4 * kernel;
  const auto row = [&](size_t index) { return table + index * channels; };
  const auto padded = [&](size_t c) { return c / head_dim * HeadWidth() + c % head_dim; };

  PackedProjection& to = projections[kernel];
  to.units = Width();
  to.words = Words();
  to.small_slopes = HasSmallSlopes(row(first + 3), channels);
  Buffer<uint32_t> rows;
  if (!rows.Resize(Width() * Words())) return false;
  for (size_t unit = 0; unit < channels; ++unit) {
    uint32_t* bits = rows.data() + padded(unit) * Words();
    for (size_t c = 0; c < channels; ++c) {
      const uint32_t bit = source[unit * source_words + c / kBitsPerWord] >> (c % kBitsPerWord) & 1;
      bits[padded(c) / kBitsPerWord] |= bit << (padded(c) % kBitsPerWord);
    }
  }
  const bool has_signs = kernel <= kValue, scaled = kernel == kOutput;
  return PackWeights(*node.session.kernels, rows.data(), to.units, to.words, &to.kernel) &&
         CopyLimitsByHead(row(first), &input_limits[kernel]) && CopyByHead(row(first + 1), &to.multiplier) &&
         CopyByHead(row(first + 2), &to.bias) && CopyByHead(row(first + 3), &to.slope) &&
         (!has_signs || CopyLimitsByHead(row(kThresholdRows + kernel), &to.sign_limit)) &&
         (!scaled || (CopyByHead(row(kOutputRows), &to.scale) && CopyByHead(row(kOutputRows + 1), &to.shift)));
}

bool Attention::Pack(const NodeView& node) {
  if (packed) return true;
  for (int kernel = kQuery; kernel < static_cast<int>(reduction > 1 ? kKernels : kReduced); ++kernel) {
    if (!PackProjection(node, static_cast<Kernel>(kernel))) return false;
  }
  const auto* table = static_cast<const float*>(node.Input(2)->data);
  const auto row = [&](size_t index) { return table + index * channels; };
  if (!CopyByHead(row(kScaleRow), &scale) || !CopyPadded(row(kScaleRow), channels, &natural_scale) ||
      !CopyByHead(row(kContextRows), &context_scale) ||
      !CopyByHead(row(kContextRows + 1), &context_bias) || !CopyByHead(row(kContextRows + 2), &context_slope) ||
      !limit.Prepare(head_dim, *static_cast<const float*>(node.Input(3)->data))) {
    return false;
  }
  small_context_slopes = HasSmallSlopes(row(kContextRows + 2), channels);
  return packed = true;
}

bool Attention::Reserve(const NodeView& node) {
  const KernelSet& kernels = *node.session.kernels;
  key_stride = PackedWords(key_count, HeadWords(), kernels.unit_tile, kernels.word_group);
  value_stride = PackedWords(HeadWidth(), KeyWords(), kernels.unit_tile, kernels.word_group);
  if (!shortcuts.Resize(key_count * Width()) || !key_bits.Resize(key_count * Words()) ||
      !value_bits.Resize(key_count * Words()) || !keys.Resize(heads * key_stride) ||
      !values.Resize(heads * value_stride) || !value_sums.Resize(Width())) {
    return false;
  }
  limit.SetKeys(key_count);
  if (!key_of_query.Resize(Queries())) return false;
  for (size_t i = 0; i < Queries(); ++i) {
    key_of_query[i] = static_cast<uint32_t>(i / width / reduction * (width / reduction) + i % width / reduction);
  }
  const auto threads = static_cast<size_t>(node.session.pool.threads());
  for (size_t thread = 0; thread < threads; ++thread) {
    Scratch& own = scratch[thread];
    const size_t counts = kRowsPerTask * KeyBlocks() * kBytesPerBlock;
    if (!own.reals.Resize(5 * kRowsPerTask * Width()) || !own.bits.Resize(kRowsPerTask * Words()) ||
        !own.signs.Resize(kRowsPerTask * Words()) || !own.masks.Resize(kRowsPerTask * MaskWords()) ||
        !(limit.TakesBytes() ? own.byte_counts.Resize(counts) : own.counts.Resize(counts))) {
      return false;
    }
  }
  return true;
}

bool Attention::Prepare(const NodeView& node, const Options& options) {
  if (!ReadShapes(node, options)) return false;
  if (!Pack(node) || !Reserve(node)) return node.FailForMemory();
  return node.ResizeLike(0, node.Input(0));
}

bool Attention::Invoke(const NodeView& node) {
  const KernelSet& kernels = *node.session.kernels;
  ThreadPool& pool = node.session.pool;
  const auto for_rows = [&](size_t rows, const auto& body) {
    const size_t most = RowsPerTask(kernels, rows, pool.threads());
    pool.ParallelFor((rows + most - 1) / most, [&](size_t task, int thread) {
      const size_t first = task * most;
      body(first, rows - first < most ? rows - first : most, thread);
    });
  };
  for (size_t image = 0; image < batch; ++image) {
    const size_t offset = image * Queries() * channels;
    const auto* x = static_cast<const float*>(node.Input(0)->data) + offset;
    auto* output = static_cast<float*>(node.Output(0)->data) + offset;
    for_rows(key_count, [&](size_t first, size_t count, int thread) { ComputeKeys(kernels, x, first, count, thread); });
    pool.ParallelFor(heads, [&](size_t head, int) { PackHead(kernels, head); });
    for_rows(Queries(), [&](size_t first, size_t count, int thread) {
      ComputeQueries(kernels, x, output, first, count, thread);
    });
  }
  return true;
}

void Attention::ComputeKeys(const KernelSet& kernels, const float* x, size_t first, size_t count, int thread) {
  Scratch& own = scratch[thread];
  const size_t map = kRowsPerTask * Width();
  float* source = own.reals.data();
  float* reduced = source + map;
  float* key = source + 2 * map;
  float* padded = source + 3 * map;
  uint32_t* bits = own.bits.data();
  const auto pack = [&](Kernel kernel) {
    for (size_t row = 0; row < count; ++row) {
      kernels.pack_below(source + row * Width(), input_limits[kernel].data(), Words(), bits + row * Words());
    }
  };
  const Rows rows = {bits, Words(), count};
  if (reduction > 1) {
    const size_t reduced_width = width / reduction;
    for (size_t row = 0; row < count; ++row) {
      const size_t top = (first + row) / reduced_width * reduction, left = (first + row) % reduced_width * reduction;
      float* to = source + row * Width();
      kernels.pool(x + (top * width + left) * channels, width * channels, reduction, natural_scale.data(), channels,
                   IsPadded() ? padded : to);
      if (IsPadded()) PadRows(padded, 1, to);
    }
    pack(kReduced);
    projections[kReduced].Run(kernels, rows, source, nullptr, reduced, Width());
    source = reduced;
    pack(kKey);
  } else {
    x += first * channels;
    if (IsPadded()) PadRows(x, count, padded), x = padded;
    kernels.scale_and_pack(x, count, Words(), scale.data(), input_limits[kKey].data(), source, bits);
  }
  projections[kKey].Run(kernels, rows, source, nullptr, key, Width(), {key_bits.data() + first * Words(), Words()});
  pack(kValue);
  // Only the bits of the value itself are needed.
  projections[kValue].Run(kernels, rows, source, key, shortcuts.data() + first * Width(), Width(),
                          {value_bits.data() + first * Words(), Words()});
}

// Transposes 32 rows of 32 bits: bit j of word i goes to bit i of word j.
void Transpose(uint32_t (&words)[kBitsPerWord]) {
  uint32_t mask = 0x0000FFFF;
  for (size_t step = 16; step > 0; step /= 2, mask ^= mask << step) {
    for (size_t i = 0; i < kBitsPerWord; i = ((i | step) + 1) & ~step) {
      const uint32_t swapped = ((words[i] >> step) ^ words[i | step]) & mask;
      words[i] ^= swapped << step;
      words[i | step] ^= swapped;
    }
  }
}

void Attention::PackHead(const KernelSet& kernels, size_t head) {
  const size_t tile = kernels.unit_tile, group = kernels.word_group;
  PackRows(key_bits.data() + head * HeadWords(), Words(), key_count, HeadWords(), tile, group,
           keys.data() + head * key_stride);
  uint32_t* packed_values = values.data() + head * value_stride;
  for (size_t first_channel = 0; first_channel < head_dim; first_channel += kBitsPerWord) {
    const size_t channel_count = head_dim - first_channel < kBitsPerWord ? head_dim - first_channel : kBitsPerWord;
    int32_t* sums = value_sums.data() + head * HeadWidth() + first_channel;
    for (size_t c = 0; c < channel_count; ++c) sums[c] = 0;
    for (size_t word = 0; word < KeyWords(); ++word) {
      uint32_t square[kBitsPerWord] = {};
      for (size_t i = 0; i < kBitsPerWord && word * kBitsPerWord + i < key_count; ++i) {
        const size_t key = word * kBitsPerWord + i;
        square[i] = value_bits[key * Words() + head * HeadWords() + first_channel / kBitsPerWord];
      }
      Transpose(square);
      uint32_t* to = packed_values + PackedIndex(tile, group, KeyWords(), first_channel, word);
      for (size_t c = 0; c < channel_count; to += tile * RoundUp(KeyWords(), group)) {
        for (size_t i = 0; i < tile && c < channel_count; ++i, ++c) {
          sums[c] += __builtin_popcount(square[c]);
          to[i * group] = square[c];
        }
      }
    }
  }
}

// The rows of a head's binary attention, for `count` queries whose bits are in `signs`.
void Attention::ComputeMasks(const KernelSet& kernels, size_t head, size_t count, int thread) {
  Scratch& own = scratch[thread];
  // Whole tiles of keys, including padding.
  const Weights head_keys = {keys.data() + head * key_stride, RoundUp(key_count, kernels.unit_tile), HeadWords()};
  const Rows queries = {own.signs.data() + head * HeadWords(), Words(), count};
  const size_t row_of_counts = KeyBlocks() * kBytesPerBlock;
  if (limit.TakesBytes()) {
    kernels.count_bytes(queries, head_keys, own.byte_counts.data(), row_of_counts);
    limit.Pack(kernels, own.byte_counts.data(), count, own.masks.data());
    return;
  }
  kernels.count(queries, head_keys, own.counts.data(), row_of_counts);
  for (size_t row = 0; row < count; ++row) {
    const int32_t* counts = own.counts.data() + row * row_of_counts;
    uint32_t* mask = own.masks.data() + row * MaskWords();
    kernels.pack_at_most(counts, limit.Of(counts), KeyWords(), mask);
    mask[KeyWords() - 1] &= UINT32_MAX >> (KeyWords() * kBitsPerWord - key_count);
  }
}

void Attention::ComputeQueries(const KernelSet& kernels, const float* x, float* output, size_t first, size_t count,
                               int thread) {
  Scratch& own = scratch[thread];
  const size_t map = kRowsPerTask * Width();
  float* scaled = own.reals.data();
  float* query = scaled + map;
  float* context = scaled + 2 * map;
  x += first * channels;
  output += first * channels;
  float* own_output = output;
  if (IsPadded()) {
    PadRows(x, count, scaled + 3 * map);
    x = scaled + 3 * map;
    own_output = scaled + 4 * map;
  }
  kernels.scale_and_pack(x, count, Words(), scale.data(), input_limits[kQuery].data(), scaled, own.bits.data());
  const Rows bits = {own.bits.data(), Words(), count};
  projections[kQuery].Run(kernels, bits, scaled, nullptr, query, Width(), {own.signs.data(), Words()});

  const float* shortcut[kRowsPerTask];
  for (size_t row = 0; row < count; ++row) {
    shortcut[row] = shortcuts.data() + key_of_query[first + row] * Width();
  }
  for (size_t head = 0; head < heads; ++head) {
    ComputeMasks(kernels, head, count, thread);
    const Weights head_values = {values.data() + head * value_stride, HeadWidth(), KeyWords()};
    const size_t unit = head * HeadWidth();
    const Context table = {value_sums.data() + unit, context_scale.data() + unit, context_bias.data() + unit,
                           context_slope.data() + unit, input_limits[kOutput].data() + unit, small_context_slopes};
    kernels.attend({own.masks.data(), MaskWords(), count}, head_values, table, query + unit, shortcut, unit,
                   context + unit, Width(), {own.bits.data() + head * HeadWords(), Words()});
  }
  projections[kOutput].Run(kernels, bits, context, has_residual ? x : nullptr, own_output, Width());
  if (IsPadded()) CopyRows(own_output, HeadWidth(), head_dim, count * heads, output, head_dim);
}

}  // namespace

const OpType kAttention = MakeOpType<Attention>("BinaryVitAttention");

}  // namespace binaryvit
