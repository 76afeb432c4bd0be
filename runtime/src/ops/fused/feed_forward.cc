// BinaryVitFeedForward: both products of a feed-forward layer for a few positions at a time, so that the hidden units' bits
// never leave the first cache, and their values never leave the registers.
#include <cmath>
#include <limits>
#include <numeric>

#include "ops/fused/projection.h"
#include "ops/op.h"

namespace binaryvit {
namespace {

struct FeedForward {
  bool Prepare(const NodeView& node, const Options& options);
  bool Invoke(const NodeView& node);

 private:
  bool ReadShapes(const NodeView& node, const Options& options);
  bool Pack(const NodeView& node);
  bool PackExpansion(const NodeView& node);
  bool PackReduction(const NodeView& node);
  void RunTask(const KernelSet& kernels, const float* x, const float* residual, float* output, size_t count, int thread);

  size_t Expansion() const { return hidden_units / channels; }

  int has_residual = 0;
  size_t positions = 0;
  size_t channels = 0;
  size_t hidden_units = 0;

  bool packed = false;
  Buffer<float> scale, sign_limit;
  Buffer<uint32_t> expand_kernel;
  Buffer<float> hidden_table;
  Hidden hidden = {};
  bool deinterleaves = false;
  Buffer<uint32_t> shortcut_channel;  // of each e and channel of a period
  PackedProjection reduce;

  // For each thread kRowsPerTask rows of
  Buffer<float> padded;  // x, the residual and the output, where channels are padded
  Buffer<float> scaled, shortcuts, means;
  Buffer<uint32_t> bits, hidden_bits;
};

bool FeedForward::ReadShapes(const NodeView& node, const Options& options) {
  if (!node.ReadOption(options, "residual", 0, 1, &has_residual)) return false;
  if (!node.CheckCounts(has_residual ? 6 : 5, 1)) return false;
  const litert::Tensor* x = node.Input(0);
  if (!node.CheckType(x, "input", litert::kFloat32)) return false;
  const int rank = x->dims ? x->dims->size : 0;
  if (rank < 2 || rank > 4) return node.Fail("the input must have 2 to 4 dimensions, but has %d", rank);
  if (!node.CheckRank(x, "input", rank)) return false;
  positions = Product(*x->dims, 0, rank - 1);
  channels = static_cast<size_t>(x->dims->data[rank - 1]);

  const litert::Tensor* kernel = node.Input(1);
  if (!node.CheckConstant(kernel, "kernel_1", litert::kInt32, 2)) return false;
  hidden_units = static_cast<size_t>(kernel->dims->data[0]);
  if (hidden_units % channels != 0) {
    return node.Fail("%zu hidden units are no multiple of %zu channels", hidden_units, channels);
  }
  if (!node.CheckShape(kernel, "kernel_1", {hidden_units, WordsFor(channels)}) ||
      !node.CheckTable(node.Input(2), "hidden", litert::kFloat32, {4, hidden_units}) ||
      !node.CheckTable(node.Input(3), "kernel_2", litert::kInt32, {channels, WordsFor(hidden_units)}) ||
      !node.CheckTable(node.Input(4), "parameters", litert::kFloat32, {7, channels})) {
    return false;
  }
  return !has_residual || node.CheckSameShape(node.Input(5), "residual", x, "input");
}

bool FeedForward::PackExpansion(const NodeView& node) {
  const KernelSet& kernels = *node.session.kernels;
  const size_t tile = kernels.hidden_tile, expansion = Expansion(), words = WordsFor(channels);
  hidden.channels = RoundUp(channels, tile);
  hidden.expansion = expansion;
  hidden.words = words;

  // Row by row in the order of HiddenIndex; then the kernels' own order within each tile.
  Buffer<uint32_t> source, ordered;
  const size_t units = hidden.channels * expansion;
  if (!CopyBits(static_cast<const uint32_t*>(node.Input(1)->data), hidden_units, channels, &source) ||
      !ordered.Resize(units * words) || !expand_kernel.Resize(PackedWords(units, words, tile, kernels.word_group)) ||
      !hidden_table.Resize(4 * units)) {
    return false;
  }
  const auto* table = static_cast<const float*>(node.Input(2)->data);
  for (size_t channel = 0; channel < hidden.channels; ++channel) {
    for (size_t e = 0; e < expansion; ++e) {
      const size_t index = HiddenIndex(tile, expansion, channel, e), unit = channel * expansion + e;
      float* constants = hidden_table.data() + index / tile * 4 * tile + index % tile;
      if (channel >= channels) {  // padding: a limit that sets no bit
        constants[3 * tile] = -std::numeric_limits<float>::infinity();
        continue;
      }
      std::memcpy(ordered.data() + index * words, source.data() + unit * words, words * sizeof(uint32_t));
      for (size_t row = 0; row < 3; ++row) constants[row * tile] = table[row * hidden_units + unit] + 0.0f;
      constants[3 * tile] = -table[3 * hidden_units + unit];
    }
  }
  PackRows(ordered.data(), words, units, words, tile, kernels.word_group, expand_kernel.data());
  hidden.weights = expand_kernel.data();
  hidden.table = hidden_table.data();
  hidden.small_slopes = HasSmallSlopes(table + 2 * hidden_units, hidden_units);

  // Hidden unit channel * expansion + e has the shortcut of that number modulo the channels, which is periodic in channel.
  const size_t period = std::lcm(channels / std::gcd(channels, expansion), tile);
  hidden.period = period < hidden.channels ? period : hidden.channels;
  deinterleaves = CanDeinterleave(tile, channels, expansion);
  if (!shortcut_channel.Resize(expansion * hidden.period)) return false;
  for (size_t e = 0; e < expansion; ++e) {
    for (size_t i = 0; i < hidden.period; ++i) {
      shortcut_channel[e * hidden.period + i] = static_cast<uint32_t>((i * expansion + e) % channels);
    }
  }
  return true;
}

bool FeedForward::PackReduction(const NodeView& node) {
  const KernelSet& kernels = *node.session.kernels;
  const size_t words = HiddenWords(kernels, channels, Expansion());
  Buffer<uint32_t> rows;
  if (!rows.Resize(channels * words)) return false;
  const auto* kernel = static_cast<const uint32_t*>(node.Input(3)->data);
  const size_t source_words = WordsFor(hidden_units);
  for (size_t unit = 0; unit < hidden_units; ++unit) {
    const HiddenPosition to = PositionOfHidden(kernels, channels, Expansion(), unit / Expansion(), unit % Expansion());
    for (size_t channel = 0; channel < channels; ++channel) {
      const uint32_t bit = kernel[channel * source_words + unit / kBitsPerWord] >> (unit % kBitsPerWord) & 1;
      rows[channel * words + to.word] |= bit << to.bit;
    }
  }
  const auto* table = static_cast<const float*>(node.Input(4)->data);
  const auto row = [&](size_t index) { return table + index * channels; };
  return reduce.Pack(kernels, rows.data(), words, channels, row(2), row(3), row(4), row(5), row(6)) &&
         CopyPadded(row(0), channels, &scale) && CopyLimits(row(1), channels, &sign_limit);
}

bool FeedForward::Pack(const NodeView& node) {
  if (!packed) packed = PackExpansion(node) && PackReduction(node);
  const size_t rows = kRowsPerTask * static_cast<size_t>(node.session.pool.threads());
  const size_t width = PaddedWidth(channels);
  return packed && padded.Resize(3 * rows * width) && scaled.Resize(rows * width) && means.Resize(rows * width) &&
         shortcuts.Resize(rows * shortcut_channel.size()) && bits.Resize(rows * hidden.words) &&
         hidden_bits.Resize(rows * reduce.words);
}

bool FeedForward::Prepare(const NodeView& node, const Options& options) {
  if (!ReadShapes(node, options)) return false;
  if (!Pack(node)) return node.FailForMemory();
  return node.ResizeLike(0, node.Input(0));
}

bool FeedForward::Invoke(const NodeView& node) {
  const auto* x = static_cast<const float*>(node.Input(0)->data);
  const auto* residual = has_residual ? static_cast<const float*>(node.Input(5)->data) : nullptr;
  auto* output = static_cast<float*>(node.Output(0)->data);
  const KernelSet& kernels = *node.session.kernels;
  ThreadPool& pool = node.session.pool;
  const size_t most = RowsPerTask(kernels, positions, pool.threads());
  pool.ParallelFor((positions + most - 1) / most, [&](size_t task, int thread) {
    const size_t first = task * most, offset = first * channels;
    const size_t count = positions - first < most ? positions - first : most;
    RunTask(kernels, x + offset, residual ? residual + offset : nullptr, output + offset, count, thread);
  });
  return true;
}

void FeedForward::RunTask(const KernelSet& kernels, const float* x, const float* residual, float* output, size_t count,
                          int thread) {
  const size_t width = PaddedWidth(channels), first = static_cast<size_t>(thread) * kRowsPerTask;
  float* own_output = output;
  if (width != channels) {
    float* own = padded.data() + 3 * first * width;
    CopyRows(x, channels, channels, count, own, width);
    x = own;
    if (residual) CopyRows(residual, channels, channels, count, own + kRowsPerTask * width, width);
    if (residual) residual = own + kRowsPerTask * width;
    own_output = own + 2 * kRowsPerTask * width;
  }
  float* s = scaled.data() + first * width;
  float* shortcut = shortcuts.data() + first * shortcut_channel.size();
  float* mean = means.data() + first * width;
  uint32_t* bit = bits.data() + first * hidden.words;
  uint32_t* hidden_bit = hidden_bits.data() + first * reduce.words;
  kernels.scale_and_pack(x, count, hidden.words, scale.data(), sign_limit.data(), s, bit);
  if (deinterleaves) {
    kernels.deinterleave(s, count, channels, Expansion(), hidden.period, shortcut);
  } else {
    for (size_t row = 0; row < count; ++row) {
      float* to = shortcut + row * shortcut_channel.size();
      for (size_t i = 0; i < shortcut_channel.size(); ++i) to[i] = s[row * width + shortcut_channel[i]];
    }
  }
  kernels.expand({bit, hidden.words, count}, hidden, shortcut, mean, width, hidden_bit, reduce.words);
  reduce.Run(kernels, {hidden_bit, reduce.words, count}, mean, residual, own_output, width);
  if (own_output != output) CopyRows(own_output, width, channels, count, output, channels);
}

}  // namespace

const OpType kFeedForward = MakeOpType<FeedForward>("BinaryVitFeedForward");

}  // namespace binaryvit
