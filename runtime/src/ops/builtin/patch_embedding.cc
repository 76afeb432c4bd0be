// LiteRT's CONV_2D of windows next to each other in an image: a patch embedding. XNNPACK isn't fast for as few channels, and
// rounds as its kernels for a processor do.
//
// A sum begins with the bias and takes the products of a window row by row, from left to right, by fused multiply-adds. On a
// processor without them it stays with the host.
#include "ops/builtin/clamp.h"
#include "ops/builtin/map_sum.h"
#include "ops/builtin/pointwise_action.h"
#include "ops/builtin/real_weights.h"
#include "ops/op.h"

namespace binaryvit {
namespace {

constexpr int kMaxChannels = 4;
constexpr size_t kPositionsPerTask = 28;  // a multiple of the rows of all tiles

struct PatchEmbedding {
  static bool Supports(const NodeView& node);
  bool Prepare(const NodeView& node, const Options&);
  bool Invoke(const NodeView& node);

 private:
  size_t batch = 0, height = 0, width = 0;  // of the output
  size_t image_size = 0;   // values
  size_t image_width = 0;  // of a row
  size_t taps = 0;         // rows of a window
  size_t tap_width = 0;    // values of a row of a window
  Clamp clamp;
  MapSum sum;
  bool packed = false;
  RealWeights weights;
};

bool PatchEmbedding::Supports(const NodeView& node) {
  const auto* params = static_cast<const litert::ConvParams*>(node.BuiltinData());
  if (!node.session.kernels->embed || !params || params->padding != litert::kPaddingValid ||
      params->dilation_width != 1 || params->dilation_height != 1 || !Clamp().Read(params->activation) ||
      node.InputCount() != 3 || node.OutputCount() != 1) {
    return false;
  }
  const litert::Tensor* image = node.Input(0);
  const litert::Tensor* filter = node.Input(1);
  if (!IsFloat(image) || image->dims->size != 4 || !IsConstant(filter, litert::kFloat32) || filter->dims->size != 4 ||
      !IsFloat(node.Output(0))) {
    return false;
  }
  const int* sizes = filter->dims->data;
  return sizes[1] == params->stride_height && sizes[2] == params->stride_width && sizes[3] <= kMaxChannels &&
         sizes[3] == image->dims->data[3] && IsTable(node.Input(2), static_cast<size_t>(sizes[0]));
}

bool PatchEmbedding::Prepare(const NodeView& node, const Options&) {
  if (!node.CheckCounts(3, 1)) return false;
  const litert::Tensor* image = node.Input(0);
  if (!node.CheckType(image, "input", litert::kFloat32) || !node.CheckRank(image, "input", 4)) return false;
  const int* sizes = node.Input(1)->dims->data;
  const int* dims = image->dims->data;
  if (dims[3] != sizes[3]) return node.Fail("the filter has %d channels, but the input has %d", sizes[3], dims[3]);
  if (dims[1] < sizes[1] || dims[2] < sizes[2]) {
    return node.Fail("a window of %d x %d is larger than the map of %d x %d", sizes[1], sizes[2], dims[1], dims[2]);
  }
  batch = static_cast<size_t>(dims[0]);
  height = static_cast<size_t>(dims[1] / sizes[1]);
  width = static_cast<size_t>(dims[2] / sizes[2]);
  image_size = Product(*image->dims, 1, 4);
  image_width = Product(*image->dims, 2, 4);
  taps = static_cast<size_t>(sizes[1]);
  tap_width = static_cast<size_t>(sizes[2]) * static_cast<size_t>(sizes[3]);
  clamp.Read(static_cast<const litert::ConvParams*>(node.BuiltinData())->activation);
  if (!packed) {
    packed = weights.Resize(static_cast<size_t>(sizes[0]), taps * tap_width);
    if (!packed) return node.FailForMemory();
    weights.Pack(static_cast<const float*>(node.Input(1)->data), static_cast<const float*>(node.Input(2)->data));
  }
  return sum.Prepare(node, {dims[0], dims[1] / sizes[1], dims[2] / sizes[2], sizes[0]});
}

bool PatchEmbedding::Invoke(const NodeView& node) {
  const auto* images = static_cast<const float*>(node.Input(0)->data);
  float* output = sum.Resolve(node);
  const KernelSet& kernels = *node.session.kernels;
  const size_t tasks_per_row = (width + kPositionsPerTask - 1) / kPositionsPerTask;
  node.session.pool.ParallelFor(batch * height * tasks_per_row, [&](size_t task, int) {
    const size_t row = task / tasks_per_row, x = task % tasks_per_row * kPositionsPerTask;
    const size_t count = width - x < kPositionsPerTask ? width - x : kPositionsPerTask;
    const size_t place = (row * width + x) * weights.units();
    const Strips strips = {images + row / height * image_size + row % height * taps * image_width + x * tap_width, taps,
                           image_width, tap_width};
    for (size_t block = 0; block < weights.blocks(); ++block) {
      weights.Multiply(kernels, strips, count, block, clamp, output + place);
    }
    sum.Add(kernels, place, count * weights.units());
  });
  return true;
}

}  // namespace

const OpType kPatchEmbedding = MakeBuiltinOpType<PatchEmbedding>("CONV_2D", litert::kBuiltinConv2d);

}  // namespace binaryvit
