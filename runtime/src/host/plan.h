// Plan: which nodes of a graph the delegate replaces, and by which operators.
#ifndef BINARYVIT_HOST_PLAN_H_
#define BINARYVIT_HOST_PLAN_H_

#include "ops/op.h"

namespace binaryvit {

// The operator of that name or builtin code, or null.
const OpType* FindOp(const litert::Registration& registration);

class Plan {
 public:
  ~Plan() { std::free(nodes_); }

  // Reads the graph before any replacement. False if there is no memory, or the host doesn't give a node.
  [[nodiscard]] bool Make(litert::Context* context, Session* session);

  // The graph's nodes in their order.
  const litert::IntArray& nodes() const { return *nodes_; }
  // The operator for the node at a place in that order. Null: the host runs it, or it is part of the replacement before.
  const OpType* OpAt(size_t place) const { return ops_[place]; }
  // How many nodes such an operator replaces, from that place on. Nodes of kPointwise run together wherever they can.
  size_t CountAt(size_t place) const { return counts_[place]; }

 private:
  template <typename Body>
  bool ForNodes(const Body& body) const;
  bool Supports(const OpType& op, const litert::Node& node, const litert::Registration& registration) const;
  bool MarkComputed();
  bool ChoosePointwise();
  const OpType* ChooseBuiltin(const OpType* op, const litert::Node& node, const litert::Registration& registration) const;
  bool HasMapSum(size_t place, const litert::Node& node, const litert::Registration& registration) const;

  litert::Context* context_ = nullptr;
  Session* session_ = nullptr;
  litert::IntArray* nodes_ = nullptr;
  Buffer<const OpType*> ops_;
  Buffer<size_t> counts_;
  Buffer<bool> computed_;  // of tensors: whether they may differ between runs
  bool is_fused_ = false;  // some nodes are fused operators
};

}  // namespace binaryvit

#endif  // BINARYVIT_HOST_PLAN_H_
