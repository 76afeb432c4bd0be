#include "host/plan.h"

#include <cstring>

#include "ops/builtin/map_sum.h"

namespace binaryvit {
namespace {

using litert::IntArray;
using litert::Node;
using litert::Registration;

const OpType* const kOps[] = {&kLceQuantize,    &kLceDequantize, &kLceBconv2d,    &kLceBMaxPool2d,
                              &kAttention,      &kFeedForward,   &kPatchMerging,  &kPooling,
                              &kFullyConnected, &kGlobalMean,    &kPatchEmbedding};

bool IsFused(const OpType* op) {
  return op == &kAttention || op == &kFeedForward || op == &kPatchMerging || op == &kPooling;
}

bool IsBuiltin(const Registration& registration) { return registration.builtin_code != litert::kBuiltinCustom; }

bool IsTensor(int index, const Buffer<bool>& marks) { return index >= 0 && static_cast<size_t>(index) < marks.size(); }

bool HasMark(const IntArray* tensors, const Buffer<bool>& marks) {
  for (int i = 0; tensors && i < tensors->size; ++i) {
    const int tensor = tensors->data[i];
    if (IsTensor(tensor, marks) && marks[static_cast<size_t>(tensor)]) return true;
  }
  return false;
}

void SetMarks(const IntArray* tensors, bool value, Buffer<bool>* marks) {
  for (int i = 0; tensors && i < tensors->size; ++i) {
    const int tensor = tensors->data[i];
    if (IsTensor(tensor, *marks)) (*marks)[static_cast<size_t>(tensor)] = value;
  }
}

}  // namespace

const OpType* FindOp(const Registration& registration) {
  for (const OpType* op : kOps) {
    if (op->builtin_code != registration.builtin_code) continue;
    if (IsBuiltin(registration)) return op;
    if (registration.custom_name && std::strcmp(registration.custom_name, op->name) == 0) return op;
  }
  return nullptr;
}

// Calls body(place, node, registration) for each node, until one returns false.
template <typename Body>
bool Plan::ForNodes(const Body& body) const {
  for (int i = 0; i < nodes_->size; ++i) {
    Node* node;
    Registration* registration;
    if (context_->GetNodeAndRegistration(context_, nodes_->data[i], &node, &registration) != litert::kOk ||
        !body(static_cast<size_t>(i), *node, *registration)) {
      return false;
    }
  }
  return true;
}

bool Plan::Make(litert::Context* context, Session* session) {
  context_ = context;
  session_ = session;
  IntArray* nodes;
  if (context->GetExecutionPlan(context, &nodes) != litert::kOk) return false;
  nodes_ = Copy(nodes);  // the host's changes with every replacement
  const auto count = static_cast<size_t>(nodes->size);
  if (!nodes_ || !ops_.Resize(count) || !counts_.Resize(count) || !computed_.Resize(context->tensors_size)) return false;

  bool has_custom = false;
  const bool ok = ForNodes([&](size_t, const Node&, const Registration& registration) {
    const OpType* op = FindOp(registration);
    has_custom |= op && !op->supports;
    is_fused_ |= IsFused(op);
    return true;
  });
  if (!ok || !has_custom) return ok;
  if (!MarkComputed() || !ChoosePointwise()) return false;
  return ForNodes([&](size_t i, const Node& node, const Registration& registration) {
    const bool is_part = i > 0 && counts_[i - 1] == 2;
    if (ops_[i] || is_part) return true;
    const OpType* op = FindOp(registration);
    ops_[i] = op && op->supports ? ChooseBuiltin(op, node, registration) : op;
    counts_[i] = HasMapSum(i, node, registration) ? 2 : 1;
    return true;
  });
}

// Marks all tensors except constants and what is computed from constants only, such as weights stored as float16.
bool Plan::MarkComputed() {
  for (size_t i = 0; i < computed_.size(); ++i) computed_[i] = context_->tensors[i].allocation != litert::kReadOnlyFile;
  return ForNodes([&](size_t, const Node& node, const Registration&) {
    const bool has_inputs = node.inputs && node.inputs->size > 0;
    SetMarks(node.outputs, !has_inputs || HasMark(node.inputs, computed_), &computed_);
    return true;
  });
}

// Whether an operator supports a node.
bool Plan::Supports(const OpType& op, const Node& node, const Registration& registration) const {
  GraphNode copy = {node, registration.builtin_code};
  return op.supports(NodeView(context_, &copy, 1, node.outputs, session_, op.name));
}

// Chooses kPointwise for nodes that run together: builtin nodes that are next to each other, and an LceQuantize after one.
bool Plan::ChoosePointwise() {
  Buffer<bool> given, needed;  // tensors that such nodes compute or read
  if (!given.Resize(context_->tensors_size) || !needed.Resize(context_->tensors_size)) return false;
  const bool ok = ForNodes([&](size_t i, const Node& node, const Registration& registration) {
    const bool is_builtin = IsBuiltin(registration);
    if (!is_builtin && FindOp(registration) != &kLceQuantize) return true;
    if (!Supports(kPointwise, node, registration)) return true;
    ops_[i] = &kPointwise;
    if (is_builtin) SetMarks(node.outputs, true, &given);
    SetMarks(node.inputs, true, &needed);
    return true;
  });
  return ok && ForNodes([&](size_t i, const Node& node, const Registration& registration) {
           const bool follows = HasMark(node.inputs, given), leads = HasMark(node.outputs, needed);
           if (!follows && !(IsBuiltin(registration) && leads)) ops_[i] = nullptr;
           return true;
         });
}

// The operator for a builtin node, or null for the host's own: a product of two computed tensors or, in a graph of fused
// operators, what comes before and after them, so that whole networks give the same bits everywhere.
const OpType* Plan::ChooseBuiltin(const OpType* op, const Node& node, const Registration& registration) const {
  const int weights = node.inputs && node.inputs->size > 1 ? node.inputs->data[1] : -1;
  const bool is_computed = IsTensor(weights, computed_) && computed_[static_cast<size_t>(weights)];
  if (op == &kFullyConnected && !is_computed) op = &kHead;
  const bool is_wanted = op == &kFullyConnected || is_fused_;
  return is_wanted && Supports(*op, node, registration) ? op : nullptr;
}

// Whether the node after one adds a constant map to what that computes.
bool Plan::HasMapSum(size_t place, const Node& node, const Registration& registration) const {
  const OpType* op = ops_[place];
  if (op != &kPatchEmbedding && op != &kPatchMerging) return false;
  if (place + 1 == ops_.size() || ops_[place + 1]) return false;
  Node* next;
  Registration* its;
  if (context_->GetNodeAndRegistration(context_, nodes_->data[place + 1], &next, &its) != litert::kOk) return false;
  GraphNode pair[] = {{node, registration.builtin_code}, {*next, its->builtin_code}};
  const NodeView view(context_, pair, 2, next->outputs, session_, op->name);
  return MapSum::Follows(view.At(0), view.At(1));
}

}  // namespace binaryvit
