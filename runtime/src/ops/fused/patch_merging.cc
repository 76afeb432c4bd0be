// BinaryVitPatchMerging: a binary 2x2 convolution of stride 2 with its shortcut, one row of the output at a time, and an ADD of
// position embeddings after it.
#include "ops/builtin/map_sum.h"
#include "ops/fused/projection.h"
#include "ops/op.h"

namespace binaryvit {
namespace {

struct PatchMerging {
  bool Prepare(const NodeView& node, const Options& options);
  bool Invoke(const NodeView& node);

 private:
  bool Pack(const NodeView& node);
  void RunTask(const KernelSet& kernels, const float* x, float* output, int thread);

  size_t batch = 0, height = 0, width = 0;  // of the output
  size_t channels = 0, units = 0;
  bool packed = false;
  Buffer<float> scale, sign_limit;
  PackedProjection projection;
  MapSum sum;

  // For each thread
  Buffer<float> padded;         // a position of the input
  Buffer<float> scaled;         // two rows of it
  Buffer<uint32_t> bits;        // of the four positions under each of a row of the output
  Buffer<float> shortcuts;      // a row of the output
  Buffer<float> padded_output;  // a row of it
};

bool PatchMerging::Pack(const NodeView& node) {
  if (!packed) {
    Buffer<uint32_t> rows;
    const auto* table = static_cast<const float*>(node.Input(2)->data);
    const auto* outputs = static_cast<const float*>(node.Input(3)->data);
    packed = CopyBits(static_cast<const uint32_t*>(node.Input(1)->data), 4 * units, channels, &rows) &&
             projection.Pack(*node.session.kernels, rows.data(), 4 * WordsFor(channels), units, outputs, outputs + units,
                             outputs + 2 * units) &&
             CopyPadded(table, channels, &scale) && CopyLimits(table + channels, channels, &sign_limit);
  }
  const auto threads = static_cast<size_t>(node.session.pool.threads());
  const size_t padded_units = PaddedWidth(units);
  return packed && padded.Resize(threads * PaddedWidth(channels)) &&
         scaled.Resize(threads * 4 * width * PaddedWidth(channels)) &&
         bits.Resize(threads * width * projection.words) && shortcuts.Resize(threads * width * padded_units) &&
         padded_output.Resize(threads * width * padded_units);
}

bool PatchMerging::Prepare(const NodeView& node, const Options&) {
  if (!node.CheckCounts(4, 1)) return false;
  const litert::Tensor* x = node.Input(0);
  if (!node.CheckType(x, "input", litert::kFloat32) || !node.CheckRank(x, "input", 4)) return false;
  const int* dims = x->dims->data;
  if (dims[1] % 2 != 0 || dims[2] % 2 != 0) return node.Fail("the map has odd sides, %d x %d", dims[1], dims[2]);
  batch = static_cast<size_t>(dims[0]);
  height = static_cast<size_t>(dims[1]) / 2;
  width = static_cast<size_t>(dims[2]) / 2;
  channels = static_cast<size_t>(dims[3]);
  if (!node.CheckConstant(node.Input(1), "kernel", litert::kInt32, 2)) return false;
  units = static_cast<size_t>(node.Input(1)->dims->data[0]);
  if (units % channels != 0) return node.Fail("%zu units are no multiple of %zu channels", units, channels);
  if (!node.CheckShape(node.Input(1), "kernel", {units, 4 * WordsFor(channels)}) ||
      !node.CheckTable(node.Input(2), "parameters", litert::kFloat32, {2, channels}) ||
      !node.CheckTable(node.Input(3), "outputs", litert::kFloat32, {3, units})) {
    return false;
  }
  if (!Pack(node)) return node.FailForMemory();
  return sum.Prepare(node, {dims[0], dims[1] / 2, dims[2] / 2, static_cast<int64_t>(units)});
}

bool PatchMerging::Invoke(const NodeView& node) {
  const auto* x = static_cast<const float*>(node.Input(0)->data);
  float* output = sum.Resolve(node);
  const KernelSet& kernels = *node.session.kernels;
  node.session.pool.ParallelFor(batch * height, [&](size_t task, int thread) {
    const size_t size = width * units;
    RunTask(kernels, x + task * 4 * width * channels, output + task * size, thread);
    sum.Add(kernels, task * size, size);
  });
  return true;
}

void PatchMerging::RunTask(const KernelSet& kernels, const float* x, float* output, int thread) {
  const auto index = static_cast<size_t>(thread);
  const size_t stride = PaddedWidth(channels), padded_units = PaddedWidth(units), words = WordsFor(channels);
  float* s = scaled.data() + index * 4 * width * stride;
  uint32_t* bit = bits.data() + index * width * projection.words;
  float* shortcut = shortcuts.data() + index * width * padded_units;
  for (size_t position = 0; position < 4 * width; ++position) {
    const float* values = x + position * channels;
    if (stride != channels) {
      float* own = padded.data() + index * stride;
      std::memcpy(own, values, channels * sizeof(float));
      values = own;
    }
    const size_t below = position / (2 * width), column = position % (2 * width);
    kernels.scale_and_pack(values, 1, words, scale.data(), sign_limit.data(), s + position * stride,
                           bit + column / 2 * projection.words + (2 * below + column % 2) * words);
  }
  for (size_t column = 0; column < width; ++column) {
    const float* above = s + 2 * column * stride;
    const float* below = above + 2 * width * stride;
    float* mean = shortcut + column * padded_units;
    for (size_t i = 0; i < channels; ++i) {
      mean[i] = ((above[i] + above[stride + i]) + (below[i] + below[stride + i])) * 0.25f;
    }
    for (size_t copy = channels; copy < units; copy += channels) {
      std::memcpy(mean + copy, mean, channels * sizeof(float));
    }
  }
  const Rows rows = {bit, projection.words, width};
  if (padded_units == units) {
    projection.Run(kernels, rows, shortcut, nullptr, output, units);
    return;
  }
  float* own = padded_output.data() + index * width * padded_units;
  projection.Run(kernels, rows, shortcut, nullptr, own, padded_units);
  CopyRows(own, padded_units, units, width, output, units);
}

}  // namespace

const OpType kPatchMerging = MakeOpType<PatchMerging>("BinaryVitPatchMerging");

}  // namespace binaryvit
