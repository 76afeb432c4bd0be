// What an operator is, and what it sees of its node. Operators know nothing of delegates.
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

// A node while it is prepared or run, or several that are run as one. Tensors may move when any is resized: ask for them
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

  // The tensor, or null for an optional one that is left out. CheckCounts comes first.
  const litert::Tensor* Input(int index) const { return TensorAt(InputIndex(index)); }
  litert::Tensor* Output(int index) const { return TensorAt(OutputIndex(index)); }

  // Before CheckCounts: how many inputs and outputs the node lists, and whether one is a tensor of the model.
  int InputCount() const { return nodes_->node.inputs ? nodes_->node.inputs->size : 0; }
  int OutputCount() const { return nodes_->node.outputs ? nodes_->node.outputs->size : 0; }
  bool HasInput(int index) const { return Input(index) != nullptr; }

  // Which tensors of the model they are, and a tensor of the model, or null.
  int InputIndex(int index) const { return nodes_->node.inputs->data[index]; }
  int OutputIndex(int index) const { return nodes_->node.outputs->data[index]; }
  litert::Tensor* TensorAt(int index) const;

  // The operator, and parameters of a builtin one, or null.
  int BuiltinCode() const { return nodes_->builtin_code; }
  const void* BuiltinData() const { return nodes_->node.builtin_data; }

  // Reports "name: message", as printf would write it, and returns false.
  __attribute__((format(printf, 2, 3))) bool Fail(const char* format, ...) const;

  // The same where a Buffer couldn't be had.
  bool FailForMemory() const;

  // Each of these is true, or reports what is wrong.
  bool CheckCounts(int inputs, int outputs) const;
  bool CheckType(const litert::Tensor*, const char* role, litert::Type) const;
  // This many dimensions of 1 or more; and where it is a constant, all the data that they promise. The type comes first.
  bool CheckRank(const litert::Tensor*, const char* role, int rank) const;
  // A constant of this type and rank.
  bool CheckConstant(const litert::Tensor*, const char* role, litert::Type, int rank) const;
  // The shape is this one.
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

// An operator's entry points. `prepare` runs whenever shapes have changed, and before `invoke`. Of a builtin operator the
// delegate takes the nodes that `claims` says; the host has the others.
struct OpType {
  const char* name;
  int builtin_code;
  bool (*claims)(const NodeView&);  // null for a custom operator, which has no other home
  void* (*create)();
  void (*destroy)(void* op);
  bool (*prepare)(void* op, const NodeView&, const Options&);
  bool (*invoke)(void* op, const NodeView&);
};

// Op has a constructor without arguments, bool Prepare(const NodeView&, const Options&) and bool Invoke(const NodeView&).
template <typename Op>
constexpr OpType MakeOpType(const char* name, int builtin_code = litert::kBuiltinCustom,
                            bool (*claims)(const NodeView&) = nullptr) {
  return {
      name,
      builtin_code,
      claims,
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

// The same for a builtin operator; Op has static bool Claims(const NodeView&) as well, which reports nothing.
template <typename Op>
constexpr OpType MakeBuiltinOpType(const char* name, int builtin_code) {
  return MakeOpType<Op>(name, builtin_code, Op::Claims);
}

extern const OpType kLceQuantize, kLceDequantize, kLceBconv2d, kLceBMaxPool2d;
extern const OpType kAttention, kFeedForward, kPatchMerging, kPooling;
extern const OpType kFullyConnected, kPointwise;

static inline bool IsFloat(const litert::Tensor* tensor) {
  return tensor && tensor->dims && tensor->type == litert::kFloat32;
}

// Product of dims[first] to dims[last - 1]; of none, 1. Shapes of tensors that the host has allocated don't overflow.
static inline size_t Product(const litert::IntArray& dims, int first, int last) {
  size_t product = 1;
  for (int i = first; i < last; ++i) product *= static_cast<size_t>(dims.data[i]);
  return product;
}

}  // namespace binaryvit

#endif  // BINARYVIT_OPS_OP_H_
