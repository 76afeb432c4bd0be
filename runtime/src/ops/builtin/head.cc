// LiteRT's FULLY_CONNECTED of a vector for each image with constant weights: a network's head.
//
// A sum begins with the bias and takes the products from the first to the last, by fused multiply-adds. On a processor without
// them it stays with the host.
#include "ops/builtin/clamp.h"
#include "ops/builtin/pointwise_action.h"
#include "ops/builtin/real_weights.h"
#include "ops/op.h"

namespace binaryvit {
namespace {

struct Head {
  static bool Supports(const NodeView& node);
  bool Prepare(const NodeView& node, const Options&);
  bool Invoke(const NodeView& node);

 private:
  size_t rows = 0;
  Clamp clamp;
  bool packed = false;
  RealWeights weights;
};

bool Head::Supports(const NodeView& node) {
  const auto* params = static_cast<const litert::FullyConnectedParams*>(node.BuiltinData());
  if (!node.session.kernels->embed || !params || params->weights_format != 0 || !Clamp().Read(params->activation) ||
      node.InputCount() < 2 || node.InputCount() > 3 || node.OutputCount() != 1) {
    return false;
  }
  const litert::Tensor* input = node.Input(0);
  const litert::Tensor* weights = node.Input(1);
  if (!IsFloat(input) || input->dims->size != 2 || !IsFloat(weights) || weights->dims->size != 2 ||
      !IsFloat(node.Output(0))) {
    return false;
  }
  const int* sizes = weights->dims->data;
  const bool has_bias = node.InputCount() == 3 && node.InputIndex(2) != -1;
  return sizes[0] > 0 && (!has_bias || IsTable(node.Input(2), static_cast<size_t>(sizes[0])));
}

bool Head::Prepare(const NodeView& node, const Options&) {
  if (!node.CheckCounts(node.InputCount() == 3 ? 3 : 2, 1)) return false;
  const litert::Tensor* input = node.Input(0);
  const litert::Tensor* matrix = node.Input(1);
  if (!node.CheckType(input, "input", litert::kFloat32) || !node.CheckRank(input, "input", 2) ||
      !node.CheckRank(matrix, "weights", 2) || !node.CheckType(node.Output(0), "output", litert::kFloat32)) {
    return false;
  }
  const int units = matrix->dims->data[0], depth = matrix->dims->data[1];
  if (input->dims->data[1] != depth) {
    return node.Fail("the weights have %d values for each unit, but the input has %d", depth, input->dims->data[1]);
  }
  rows = static_cast<size_t>(input->dims->data[0]);
  clamp.Read(static_cast<const litert::FullyConnectedParams*>(node.BuiltinData())->activation);
  if (!packed && !weights.Resize(static_cast<size_t>(units), static_cast<size_t>(depth))) return node.FailForMemory();
  const int64_t shape[] = {input->dims->data[0], units};
  return node.ResizeOutput(0, shape, 2);
}

bool Head::Invoke(const NodeView& node) {
  // Before the first run, the host hasn't yet computed weights that are stored as float16.
  if (!packed) {
    const bool has_bias = node.InputCount() == 3 && node.HasInput(2);
    weights.Pack(static_cast<const float*>(node.Input(1)->data),
                 has_bias ? static_cast<const float*>(node.Input(2)->data) : nullptr);
    packed = true;
  }
  const Strips strips = {static_cast<const float*>(node.Input(0)->data), 1, 0, weights.depth()};
  auto* output = static_cast<float*>(node.Output(0)->data);
  const KernelSet& kernels = *node.session.kernels;
  node.session.pool.ParallelFor(weights.blocks(), [&](size_t block, int) {
    weights.Multiply(kernels, strips, rows, block, clamp, output);
  });
  return true;
}

}  // namespace

const OpType kHead = MakeBuiltinOpType<Head>("FULLY_CONNECTED", litert::kBuiltinFullyConnected);

}  // namespace binaryvit
