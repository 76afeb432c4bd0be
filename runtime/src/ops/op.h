// OpType, an operator, and NodeView, what it sees of its node. Operators don't know the delegate.
#ifndef BINARYVIT_OPS_OP_H_
#define BINARYVIT_OPS_OP_H_

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <new>

#include "base/thread_pool.h"
#include "host/flexbuffer.h"
#include "host/litert_abi.h"
#include "kernels/kernel_set.h"

namespace binaryvit {

constexpr int kMaxRank = 8;  // of outputs

// What the operators of one interpreter share.
struct Session {
  const KernelSet* kernels;
  ThreadPool pool;
};

// A node of the graph.
struct GraphNode {
  litert::Node node;
  int builtin_code;
};

// A node, or several nodes that run together, while they are prepared or run. Resizing a tensor may move others: read them
// again.
class NodeView {
 public:
  NodeView(litert::Context* context, GraphNode* nodes, size_t count, const litert::IntArray* outputs, Session* shared,
           const char* name)
      : session(*shared), context_(context), nodes_(nodes), count_(count), outputs_(outputs), name_(name) {}

  // Of several nodes: how many there are, each of them, and whether others or the model's outputs need a tensor. All other
  // functions are about the first one.
  size_t NodeCount() const { return count_; }
  NodeView At(size_t index) const { return {context_, nodes_ + index, 1, outputs_, &session, name_}; }
  bool IsOutput(int tensor) const;

  // The tensor, or null for an omitted optional one. Call CheckCounts first.
  const litert::Tensor* Input(int index) const { return TensorAt(InputIndex(index)); }
  litert::Tensor* Output(int index) const { return TensorAt(OutputIndex(index)); }

  // These may come before CheckCounts.
  int InputCount() const { return nodes_->node.inputs ? nodes_->node.inputs->size : 0; }
  int OutputCount() const { return nodes_->node.outputs ? nodes_->node.outputs->size : 0; }
  bool HasInput(int index) const { return Input(index) != nullptr; }

  // Indices of tensors of the model, and the tensor at an index, or null.
  int InputIndex(int index) const { return nodes_->node.inputs->data[index]; }
  int OutputIndex(int index) const { return nodes_->node.outputs->data[index]; }
  litert::Tensor* TensorAt(int index) const;

  // The operator's code, and the parameters of a builtin operator, or null.
  int BuiltinCode() const { return nodes_->builtin_code; }
  const void* BuiltinData() const { return nodes_->node.builtin_data; }

  // Reports "name: message", formatted as by printf, and returns false.
  __attribute__((format(printf, 2, 3))) bool Fail(const char* format, ...) const;

  // The same if a Buffer can't be allocated.
  bool FailForMemory() const;

  // Each of these returns true, or reports what is wrong.
  bool CheckCounts(int inputs, int outputs) const;
  bool CheckType(const litert::Tensor*, const char* role, litert::Type) const;
  // The tensor has `rank` dimensions of 1 or more, and a constant has all its data. Call CheckType first.
  bool CheckRank(const litert::Tensor*, const char* role, int rank) const;
  // A constant of this type and rank.
  bool CheckConstant(const litert::Tensor*, const char* role, litert::Type, int rank) const;
  // The tensor has this shape.
  bool CheckShape(const litert::Tensor*, const char* role, std::initializer_list<size_t> shape) const;
  // A constant of this type and shape.
  bool CheckTable(const litert::Tensor*, const char* role, litert::Type, std::initializer_list<size_t> shape) const;
  // A float32 tensor of the other one's shape.
  bool CheckSameShape(const litert::Tensor*, const char* role, const litert::Tensor* other, const char* other_role) const;
  // The option `name`, between `low` and `high`.
  bool ReadOption(const Options&, const char* name, int64_t low, int64_t high, int* value) const;
  bool ResizeOutput(int index, const int64_t* dims, int rank) const;
  // Gives the output, of float32, the shape of a tensor.
  bool ResizeLike(int index, const litert::Tensor*) const;

  Session& session;

 private:
  bool CheckData(const litert::Tensor*, const char* role) const;

  litert::Context* context_;
  GraphNode* nodes_;
  size_t count_;
  const litert::IntArray* outputs_;
  const char* name_;
};

// An operator's entry points. `prepare` runs before `invoke`, and again when shapes change. The delegate replaces
// the nodes of a builtin operator that `supports` accepts; the host runs the others.
struct OpType {
  const char* name;
  int builtin_code;
  bool (*supports)(const NodeView&);  // null for a custom operator, which the host doesn't have
  void* (*create)();
  void (*destroy)(void* op);
  bool (*prepare)(void* op, const NodeView&, const Options&);
  bool (*invoke)(void* op, const NodeView&);
};

// Op has a constructor without arguments, bool Prepare(const NodeView&, const Options&) and bool Invoke(const NodeView&).
template <typename Op>
constexpr OpType MakeOpType(const char* name, int builtin_code = litert::kBuiltinCustom,
                            bool (*supports)(const NodeView&) = nullptr) {
  return {
      name,
      builtin_code,
      supports,
      []() -> void* {
        void* memory = std::malloc(sizeof(Op));
        return memory ? new (memory) Op() : nullptr;
      },
      [](void* op) {
        static_cast<Op*>(op)->~Op();
        std::free(op);
      },
      [](void* op, const NodeView& node, const Options& options) {
        return static_cast<Op*>(op)->Prepare(node, options);
      },
      [](void* op, const NodeView& node) { return static_cast<Op*>(op)->Invoke(node); },
  };
}

// The same for a builtin operator. Op also has static bool Supports(const NodeView&), which reports nothing.
template <typename Op>
constexpr OpType MakeBuiltinOpType(const char* name, int builtin_code) {
  return MakeOpType<Op>(name, builtin_code, Op::Supports);
}

extern const OpType kLceQuantize, kLceDequantize, kLceBconv2d, kLceBMaxPool2d;
extern const OpType kAttention, kFeedForward, kPatchMerging, kPooling;
extern const OpType kFullyConnected, kGlobalMean, kHead, kPatchEmbedding, kPointwise;

static inline bool IsFloat(const litert::Tensor* tensor) {
  return tensor && tensor->dims && tensor->type == litert::kFloat32;
}

// The product of dims[first] to dims[last - 1], which doesn't overflow for tensors that the host has allocated.
static inline size_t Product(const litert::IntArray& dims, int first, int last) {
  size_t product = 1;
  for (int i = first; i < last; ++i) product *= static_cast<size_t>(dims.data[i]);
  return product;
}

}  // namespace binaryvit

#endif  // BINARYVIT_OPS_OP_H_
