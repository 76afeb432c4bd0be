#include "ops/builtin/pointwise_action.h"

#include <cstring>

namespace binaryvit {

Span SpanOf(const float* filter, size_t unit, size_t units, size_t group_channels, size_t groups) {
  const float* weights = filter + unit * group_channels;
  size_t first = 0, last = group_channels;
  while (first < last && weights[first] == 0) ++first;
  while (last > first && weights[last - 1] == 0) --last;
  return {unit / (units / groups) * group_channels + first, last - first, unit * group_channels + first};
}

bool IsConstant(const litert::Tensor* tensor, litert::Type type) {
  if (!tensor || !tensor->dims || tensor->type != type || tensor->allocation != litert::kReadOnlyFile) return false;
  size_t bytes = 4;
  for (int i = 0; i < tensor->dims->size; ++i) {
    const int size = tensor->dims->data[i];
    if (size < 1 || __builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) return false;
  }
  return tensor->data && tensor->bytes >= bytes && reinterpret_cast<uintptr_t>(tensor->data) % 4 == 0;
}

bool IsTable(const litert::Tensor* tensor, size_t channels) {
  return IsConstant(tensor, litert::kFloat32) && tensor->dims->size > 0 && Elements(*tensor) == channels &&
         static_cast<size_t>(tensor->dims->data[tensor->dims->size - 1]) == channels;
}

namespace {

bool HasShapeOf(const litert::Tensor& a, const litert::Tensor& b) {
  const auto size = static_cast<size_t>(a.dims->size);
  return a.dims->size == b.dims->size && std::memcmp(a.dims->data, b.dims->data, sizeof(int) * size) == 0;
}

// A constant of one value, or of the last dimensions of `main`.
bool IsBroadcast(const litert::Tensor* tensor, const litert::Tensor& main) {
  if (!IsConstant(tensor, litert::kFloat32) || tensor->dims->size > main.dims->size) return false;
  if (Elements(*tensor) == 1) return true;
  const litert::IntArray& dims = *tensor->dims;
  int first = 0;
  while (dims.data[first] == 1) ++first;
  const int rank = dims.size - first, skipped = main.dims->size - rank;
  return std::memcmp(dims.data + first, main.dims->data + skipped, sizeof(int) * static_cast<size_t>(rank)) == 0;
}

bool ReadMain(const NodeView& node, int index, Action* action) {
  const litert::Tensor* main = node.Input(index);
  if (!IsFloat(main) || main->allocation == litert::kReadOnlyFile || main->dims->size < 1 || main->dims->size > kMaxRank) {
    return false;
  }
  int64_t elements = 1;
  for (int i = 0; i < main->dims->size; ++i) {
    const int size = main->dims->data[i];
    if (size < 1 || __builtin_mul_overflow(elements, int64_t{size}, &elements) || elements > INT32_MAX) return false;
  }
  action->main = index;
  action->rows = Product(*main->dims, 0, main->dims->size - 1);
  action->channels = action->width = static_cast<size_t>(main->dims->data[main->dims->size - 1]);
  return true;
}

// A filter of one tap without bias, or with one; both are constants.
bool HasTable(const NodeView& node, size_t units) {
  const int inputs = node.InputCount();
  return inputs == 2 || (inputs == 3 && (node.InputIndex(2) == -1 || IsTable(node.Input(2), units)));
}

bool ReadDepthwise(const NodeView& node, Action* action) {
  const auto* params = static_cast<const litert::DepthwiseConvParams*>(node.BuiltinData());
  if (!params || params->stride_width != 1 || params->stride_height != 1 || !ReadMain(node, 0, action) ||
      node.Input(0)->dims->size != 4 || !IsTable(node.Input(1), action->channels) || node.Input(1)->dims->size != 4 ||
      !HasTable(node, action->channels)) {
    return false;
  }
  action->kind = kScale;
  return action->clamp.Read(params->activation);
}

// A convolution of one tap whose units see few channels each; XNNPACK is fast for others.
bool ReadConvolution(const NodeView& node, Action* action) {
  const auto* params = static_cast<const litert::ConvParams*>(node.BuiltinData());
  if (!params || params->stride_width != 1 || params->stride_height != 1 || !ReadMain(node, 0, action) ||
      node.Input(0)->dims->size != 4 || !IsConstant(node.Input(1), litert::kFloat32)) {
    return false;
  }
  const litert::IntArray& dims = *node.Input(1)->dims;
  if (dims.size != 4 || dims.data[1] != 1 || dims.data[2] != 1) return false;
  const auto units = static_cast<size_t>(dims.data[0]), group_channels = static_cast<size_t>(dims.data[3]);
  if (action->channels % group_channels != 0) return false;
  const size_t groups = action->channels / group_channels;
  if (units % groups != 0 || !HasTable(node, units)) return false;
  const auto* filter = static_cast<const float*>(node.Input(1)->data);
  size_t products = 0;
  for (size_t unit = 0; unit < units; ++unit) products += SpanOf(filter, unit, units, group_channels, groups).count;
  if (products > units * group_channels / 4) return false;
  action->kind = kMean;
  action->width = units;
  return action->clamp.Read(params->activation);
}

bool ReadArithmetic(const NodeView& node, Kind kind, int activation, Action* action) {
  if (activation != litert::kNoActivation || node.InputCount() != 2) return false;
  action->kind = kind;
  for (int main = 0; main < 2; ++main) {
    const litert::Tensor* other = node.Input(1 - main);
    if (!ReadMain(node, main, action) || !IsFloat(other)) continue;
    const bool is_computed = other->allocation != litert::kReadOnlyFile;
    if (is_computed ? HasShapeOf(*other, *node.Input(main)) : IsBroadcast(other, *node.Input(main))) return true;
  }
  return false;
}

bool ReadTile(const NodeView& node, Action* action) {
  if (node.InputCount() != 2 || !ReadMain(node, 0, action) || !IsConstant(node.Input(1), litert::kInt32)) return false;
  const litert::Tensor& multiples = *node.Input(1);
  const int rank = node.Input(0)->dims->size;
  if (multiples.dims->size != 1 || multiples.dims->data[0] != rank) return false;
  const auto* values = static_cast<const int32_t*>(multiples.data);
  for (int i = 0; i < rank - 1; ++i) {
    if (values[i] != 1) return false;
  }
  const int32_t times = values[rank - 1];
  if (times < 1 || action->channels > INT32_MAX / static_cast<size_t>(times)) return false;
  action->kind = kTile;
  action->width = action->channels * static_cast<size_t>(times);
  return true;
}

}  // namespace

bool Describe(const NodeView& node, Action* action) {
  if (node.OutputCount() != 1 || node.InputCount() < 1) return false;
  const litert::Tensor* output = node.Output(0);
  const bool gives_bits = node.BuiltinCode() == litert::kBuiltinCustom;
  if (!output || output->allocation == litert::kReadOnlyFile ||
      output->type != (gives_bits ? litert::kInt32 : litert::kFloat32)) {
    return false;
  }
  switch (node.BuiltinCode()) {
    case litert::kBuiltinAdd: {
      const auto* params = static_cast<const litert::ArithmeticParams*>(node.BuiltinData());
      return params && ReadArithmetic(node, kAdd, params->activation, action);
    }
    case litert::kBuiltinMul: {
      const auto* params = static_cast<const litert::ArithmeticParams*>(node.BuiltinData());
      return params && ReadArithmetic(node, kMultiply, params->activation, action);
    }
    case litert::kBuiltinAddN:
      action->kind = kAdd;
      if (node.InputCount() < 2 || !ReadMain(node, 0, action)) return false;
      for (int i = 1; i < node.InputCount(); ++i) {
        if (!IsFloat(node.Input(i)) || !HasShapeOf(*node.Input(i), *node.Input(0))) return false;
        if (node.Input(i)->allocation == litert::kReadOnlyFile && !IsConstant(node.Input(i), litert::kFloat32)) return false;
      }
      return true;
    case litert::kBuiltinPrelu:
      action->kind = kSlope;
      return node.InputCount() == 2 && ReadMain(node, 0, action) && IsTable(node.Input(1), action->channels) &&
             node.Input(1)->dims->size <= node.Input(0)->dims->size;
    case litert::kBuiltinDepthwiseConv2d:
      return node.InputCount() > 1 && ReadDepthwise(node, action);
    case litert::kBuiltinConv2d:
      return node.InputCount() > 1 && ReadConvolution(node, action);
    case litert::kBuiltinTile:
      return ReadTile(node, action);
    case litert::kBuiltinCustom:  // LceQuantize
      action->kind = kSigns;
      if (node.InputCount() != 1 || !ReadMain(node, 0, action)) return false;
      action->width = WordsFor(action->channels);
      return true;
    default:
      return false;
  }
}

}  // namespace binaryvit
