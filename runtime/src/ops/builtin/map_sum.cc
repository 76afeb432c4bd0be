#include "ops/builtin/map_sum.h"

#include "ops/builtin/pointwise_action.h"

namespace binaryvit {
namespace {

// The input of `sum` that isn't what `node` computes.
int ConstantInput(const NodeView& node, const NodeView& sum) { return sum.InputIndex(0) == node.OutputIndex(0) ? 1 : 0; }

}  // namespace

bool MapSum::Follows(const NodeView& node, const NodeView& sum) {
  Action action;
  if (sum.BuiltinCode() != litert::kBuiltinAdd || node.OutputCount() != 1 || !Describe(sum, &action) ||
      sum.InputIndex(action.main) != node.OutputIndex(0)) {
    return false;
  }
  const litert::Tensor& maps = *sum.Input(action.main);
  const litert::Tensor& constant = *sum.Input(1 - action.main);
  return maps.dims->size == 4 && constant.allocation == litert::kReadOnlyFile &&
         Elements(constant) == Product(*maps.dims, 1, maps.dims->size);
}

bool MapSum::Prepare(const NodeView& node, const int64_t (&shape)[4]) {
  if (!node.CheckType(node.Output(0), "output", litert::kFloat32) || !node.ResizeOutput(0, shape, 4)) return false;
  size_ = static_cast<size_t>(shape[1] * shape[2] * shape[3]);
  if (node.NodeCount() == 1) return true;
  const NodeView sum = node.At(1);
  if (!sum.CheckCounts(2, 1)) return false;
  for (int i = 0; i < node.InputCount(); ++i) {
    if (node.InputIndex(i) == sum.OutputIndex(0)) return node.Fail("two nodes compute one tensor");
  }
  const size_t elements = Elements(*sum.Input(ConstantInput(node, sum)));
  if (elements != size_) {
    return node.Fail("its output has %zu values for each image, but %zu are added to them: the model takes images of one size",
                     size_, elements);
  }
  return sum.CheckType(sum.Output(0), "output", litert::kFloat32) && sum.ResizeOutput(0, shape, 4);
}

float* MapSum::Resolve(const NodeView& node) {
  auto* computed = static_cast<float*>(node.Output(0)->data);
  constant_ = nullptr;
  if (node.NodeCount() == 1) return computed;
  const NodeView sum = node.At(1);
  if (!node.IsOutput(sum.OutputIndex(0))) return computed;  // nothing reads it, and it has no memory
  constant_ = static_cast<const float*>(sum.Input(ConstantInput(node, sum))->data);
  output_ = static_cast<float*>(sum.Output(0)->data);
  if (!node.IsOutput(node.OutputIndex(0))) computed = output_;
  computed_ = computed;
  return computed;
}

void MapSum::Add(const KernelSet& kernels, size_t first, size_t count) const {
  if (constant_) kernels.add(computed_ + first, constant_ + first % size_, nullptr, output_ + first, count);
}

}  // namespace binaryvit
