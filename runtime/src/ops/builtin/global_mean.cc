// LiteRT's MEAN over all positions of a map: their sum row by row, from left to right, divided by their number. These are the
// same bits everywhere.
#include <cstring>

#include "ops/builtin/pointwise_action.h"
#include "ops/op.h"

namespace binaryvit {
namespace {

struct GlobalMean {
  static bool Supports(const NodeView& node);
  bool Prepare(const NodeView& node, const Options&);
  bool Invoke(const NodeView& node);

 private:
  size_t batch = 0, positions = 0, channels = 0;
};

bool GlobalMean::Supports(const NodeView& node) {
  if (!node.BuiltinData() || node.InputCount() != 2 || node.OutputCount() != 1) return false;
  const litert::Tensor* input = node.Input(0);
  const litert::Tensor* axes = node.Input(1);
  if (!IsFloat(input) || input->dims->size != 4 || !IsFloat(node.Output(0)) || !IsConstant(axes, litert::kInt32) ||
      Elements(*axes) != 2) {
    return false;
  }
  const auto* values = static_cast<const int32_t*>(axes->data);
  const int32_t first = values[0] < 0 ? values[0] + 4 : values[0], second = values[1] < 0 ? values[1] + 4 : values[1];
  return (first == 1 && second == 2) || (first == 2 && second == 1);
}

bool GlobalMean::Prepare(const NodeView& node, const Options&) {
  if (!node.CheckCounts(2, 1)) return false;
  const litert::Tensor* input = node.Input(0);
  if (!node.CheckType(input, "input", litert::kFloat32) || !node.CheckRank(input, "input", 4) ||
      !node.CheckType(node.Output(0), "output", litert::kFloat32)) {
    return false;
  }
  const int* dims = input->dims->data;
  batch = static_cast<size_t>(dims[0]);
  positions = static_cast<size_t>(dims[1]) * static_cast<size_t>(dims[2]);
  channels = static_cast<size_t>(dims[3]);
  if (static_cast<const litert::ReducerParams*>(node.BuiltinData())->keep_dims) {
    const int64_t shape[] = {dims[0], 1, 1, dims[3]};
    return node.ResizeOutput(0, shape, 4);
  }
  const int64_t shape[] = {dims[0], dims[3]};
  return node.ResizeOutput(0, shape, 2);
}

bool GlobalMean::Invoke(const NodeView& node) {
  const auto* input = static_cast<const float*>(node.Input(0)->data);
  auto* output = static_cast<float*>(node.Output(0)->data);
  const KernelSet& kernels = *node.session.kernels;
  node.session.pool.ParallelFor(batch, [&](size_t image, int) {
    const float* values = input + image * positions * channels;
    float* means = output + image * channels;
    std::memcpy(means, values, channels * sizeof(float));
    for (size_t position = 1; position < positions; ++position) {
      kernels.add(means, values + position * channels, nullptr, means, channels);
    }
    for (size_t channel = 0; channel < channels; ++channel) means[channel] /= static_cast<float>(positions);
  });
  return true;
}

}  // namespace

const OpType kGlobalMean = MakeBuiltinOpType<GlobalMean>("MEAN", litert::kBuiltinMean);

}  // namespace binaryvit
