#include "ops/op.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace binaryvit {
namespace {

const char* TypeName(int type) {
  switch (type) {
    case litert::kFloat32:
      return "float32";
    case litert::kInt32:
      return "int32";
    case litert::kBool:
      return "bool";
    case litert::kInt8:
      return "int8";
    default:
      return "another type";
  }
}

}  // namespace

litert::Tensor* NodeView::TensorAt(int index) const {
  if (index < 0 || static_cast<size_t>(index) >= context_->tensors_size) return nullptr;
  return &context_->tensors[index];
}

bool NodeView::IsOutput(int tensor) const {
  for (int i = 0; i < outputs_->size; ++i) {
    if (outputs_->data[i] == tensor) return true;
  }
  return false;
}

bool NodeView::Fail(const char* format, ...) const {
  char message[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  context_->ReportError(context_, "%s: %s", name_, message);
  return false;
}

bool NodeView::FailForMemory() const {
  return Fail("needs more memory than there is, or more than %zu MiB in one piece", kMaxBufferBytes >> 20);
}

bool NodeView::CheckCounts(int inputs, int outputs) const {
  const int actual_inputs = InputCount(), actual_outputs = OutputCount();
  if (actual_inputs != inputs || actual_outputs != outputs) {
    return Fail("takes %d inputs and %d outputs, but the node has %d and %d", inputs, outputs, actual_inputs,
                actual_outputs);
  }
  for (int i = 0; i < outputs; ++i) {
    if (!Output(i)) return Fail("output %d is no tensor of the model", i);
    if (Output(i)->allocation == litert::kReadOnlyFile) return Fail("output %d is a constant", i);
    for (int j = 0; j < inputs; ++j) {
      if (Input(j) == Output(i)) return Fail("output %d is input %d as well", i, j);
    }
  }
  return true;
}

bool NodeView::CheckType(const litert::Tensor* tensor, const char* role, litert::Type type) const {
  if (!tensor) return Fail("the %s is missing", role);
  if (tensor->type == type) return true;
  return Fail("the %s must be %s, but is %s", role, TypeName(type), TypeName(tensor->type));
}

bool NodeView::CheckRank(const litert::Tensor* tensor, const char* role, int rank) const {
  if (!tensor) return Fail("the %s is missing", role);
  if (!tensor->dims || tensor->dims->size != rank) {
    return Fail("the %s must have %d dimensions, but has %d", role, rank, tensor->dims ? tensor->dims->size : 0);
  }
  for (int i = 0; i < rank; ++i) {
    if (tensor->dims->data[i] < 1) {
      return Fail("every dimension of the %s must be 1 or more, but dimension %d is %d", role, i, tensor->dims->data[i]);
    }
  }
  return tensor->allocation != litert::kReadOnlyFile || CheckData(tensor, role);
}

// Hosts check neither the size of sparse constants nor the alignment of data in the file.
bool NodeView::CheckData(const litert::Tensor* tensor, const char* role) const {
  const size_t alignment = tensor->type == litert::kInt8 || tensor->type == litert::kBool ? 1 : 4;
  size_t size = alignment;
  for (int i = 0; i < tensor->dims->size; ++i) {
    if (__builtin_mul_overflow(size, static_cast<size_t>(tensor->dims->data[i]), &size)) {
      return Fail("the %s is too large", role);
    }
  }
  if (!tensor->data || tensor->bytes < size) {
    return Fail("the %s has %zu bytes of data, but its shape needs %zu", role, tensor->data ? tensor->bytes : 0, size);
  }
  if (reinterpret_cast<uintptr_t>(tensor->data) % alignment != 0) {
    return Fail("the data of the %s must begin at a multiple of %zu bytes", role, alignment);
  }
  return true;
}

bool NodeView::CheckConstant(const litert::Tensor* tensor, const char* role, litert::Type type, int rank) const {
  if (!CheckType(tensor, role, type) || !CheckRank(tensor, role, rank)) return false;
  return tensor->allocation == litert::kReadOnlyFile || Fail("the %s must be a constant", role);
}

bool NodeView::CheckShape(const litert::Tensor* tensor, const char* role, std::initializer_list<size_t> shape) const {
  if (!CheckRank(tensor, role, static_cast<int>(shape.size()))) return false;
  int axis = 0;
  for (const size_t size : shape) {
    if (static_cast<size_t>(tensor->dims->data[axis]) != size) {
      return Fail("dimension %d of the %s must be %zu, but is %d", axis, role, size, tensor->dims->data[axis]);
    }
    ++axis;
  }
  return true;
}

bool NodeView::CheckTable(const litert::Tensor* tensor, const char* role, litert::Type type,
                          std::initializer_list<size_t> shape) const {
  return CheckConstant(tensor, role, type, static_cast<int>(shape.size())) && CheckShape(tensor, role, shape);
}

bool NodeView::CheckSameShape(const litert::Tensor* tensor, const char* role, const litert::Tensor* other,
                              const char* other_role) const {
  if (!CheckType(tensor, role, litert::kFloat32) || !CheckRank(tensor, role, other->dims->size)) return false;
  if (std::memcmp(tensor->dims->data, other->dims->data, sizeof(int) * static_cast<size_t>(other->dims->size)) == 0) {
    return true;
  }
  return Fail("the %s must have the shape of the %s", role, other_role);
}

bool NodeView::ReadOption(const Options& options, const char* name, int64_t low, int64_t high, int* value) const {
  if (!options.valid()) return Fail("its options are no flexbuffer map");
  int64_t found;
  if (!options.GetInteger(name, &found)) return Fail("its options have no integer '%s'", name);
  if (found < low || found > high) {
    return Fail("option '%s' must be between %lld and %lld, but is %lld", name, static_cast<long long>(low),
                static_cast<long long>(high), static_cast<long long>(found));
  }
  *value = static_cast<int>(found);
  return true;
}

bool NodeView::ResizeOutput(int index, const int64_t* dims, int rank) const {
  int64_t elements = 1;
  for (int i = 0; i < rank; ++i) {
    if (__builtin_mul_overflow(elements, dims[i], &elements) || elements > INT32_MAX) {
      return Fail("output %d has more than 2^31 elements", index);
    }
  }
  auto* shape = static_cast<litert::IntArray*>(std::malloc(sizeof(int) * (static_cast<size_t>(rank) + 1)));
  if (!shape) return FailForMemory();
  shape->size = rank;
  for (int i = 0; i < rank; ++i) shape->data[i] = static_cast<int>(dims[i]);
  return context_->ResizeTensor(context_, Output(index), shape) == litert::kOk;
}

bool NodeView::ResizeLike(int index, const litert::Tensor* tensor) const {
  if (!CheckType(Output(index), "output", litert::kFloat32)) return false;
  if (tensor->dims->size > kMaxRank) return Fail("the input has more than %d dimensions", kMaxRank);
  int64_t dims[kMaxRank];
  for (int i = 0; i < tensor->dims->size; ++i) dims[i] = tensor->dims->data[i];
  return ResizeOutput(index, dims, tensor->dims->size);
}

}  // namespace binaryvit
