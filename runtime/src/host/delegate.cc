// The delegate: replaces every custom operator that it knows, one node at a time. In a graph with such operators it also
// replaces some of the builtin operators around them. The host runs all others, and graphs without custom operators.
//
// It is loaded through LiteRT's external-delegate interface and calls the host through the structs of litert_abi.h alone, so
// one build runs in every host with that interface.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "binaryvit_runtime.h"
#include "host/litert_abi.h"
#include "ops/builtin/map_sum.h"
#include "ops/op.h"

#define BINARYVIT_EXPORT extern "C" __attribute__((visibility("default")))

// The header leaves this type to the host.
struct TfLiteDelegate : binaryvit::litert::Delegate {};

namespace binaryvit {
namespace {

using litert::Context;
using litert::IntArray;
using litert::Node;
using litert::Registration;
using litert::Status;

const OpType* const kOps[] = {&kLceQuantize,    &kLceDequantize, &kLceBconv2d,    &kLceBMaxPool2d,
                              &kAttention,      &kFeedForward,   &kPatchMerging,  &kPooling,
                              &kFullyConnected, &kGlobalMean,    &kPatchEmbedding};

bool IsFused(const OpType* op) {
  return op == &kAttention || op == &kFeedForward || op == &kPatchMerging || op == &kPooling;
}

const OpType* FindOp(const Registration& registration) {
  const bool is_custom = registration.builtin_code == litert::kBuiltinCustom;
  for (const OpType* op : kOps) {
    if (op->builtin_code != registration.builtin_code) continue;
    if (!is_custom || (registration.custom_name && std::strcmp(registration.custom_name, op->name) == 0)) return op;
  }
  return nullptr;
}

struct BinaryVitDelegate : TfLiteDelegate {
  Session session;
  int num_threads = 0;  // 0: as the first graph's interpreter recommends
  const void* interpreter = nullptr;  // identified by its CPU context
  bool profile = false;
  BinaryVitProfileEntry* entries = nullptr;
  size_t entry_count = 0;
};

uint64_t Nanoseconds() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1000000000 + static_cast<uint64_t>(time.tv_nsec);
}

IntArray* Copy(const IntArray* array) {
  if (!array) return nullptr;
  const size_t size = sizeof(int) * (static_cast<size_t>(array->size) + 1);
  void* copy = std::malloc(size);
  return static_cast<IntArray*>(copy ? std::memcpy(copy, array, size) : nullptr);
}

// A kernel of one or more nodes. It keeps the nodes' lists of inputs, because the host's own node for the kernel lacks
// omitted optional inputs.
struct Kernel {
  const OpType* type = nullptr;
  void* op = nullptr;
  BinaryVitDelegate* delegate = nullptr;
  size_t entry = 0;  // of the profile
  GraphNode* nodes = nullptr;
  size_t node_count = 0;
  IntArray* outputs = nullptr;  // tensors that other nodes or the model's outputs need
  Buffer<size_t> bytes;  // of the host's tensors when this was prepared: the inputs, then the outputs
};

bool AddProfileEntry(Kernel* kernel, const char* output) {
  BinaryVitDelegate* delegate = kernel->delegate;
  const size_t size = (delegate->entry_count + 1) * sizeof(BinaryVitProfileEntry);
  auto* entries = static_cast<BinaryVitProfileEntry*>(std::realloc(delegate->entries, size));
  if (!entries) return false;
  delegate->entries = entries;
  kernel->entry = delegate->entry_count++;
  entries[kernel->entry] = {kernel->type->name, output ? output : "", 0, 0};
  return true;
}

// The name of the first output. A node may have no outputs.
const char* OutputName(const Context* context, const IntArray& outputs) {
  const int index = outputs.size > 0 ? outputs.data[0] : -1;
  return index >= 0 && static_cast<size_t>(index) < context->tensors_size ? context->tensors[index].name : nullptr;
}

void FreeKernel(Context*, void* data) {
  auto* kernel = static_cast<Kernel*>(data);
  if (!kernel) return;
  if (kernel->op) kernel->type->destroy(kernel->op);
  for (size_t i = 0; i < kernel->node_count; ++i) {
    std::free(kernel->nodes[i].node.inputs);
    std::free(kernel->nodes[i].node.outputs);
  }
  std::free(kernel->nodes);
  std::free(kernel->outputs);
  kernel->~Kernel();
  std::free(kernel);
}

// Copies the nodes that the kernel replaces.
bool CopyNodes(Context* context, const IntArray& indices, Kernel* kernel) {
  const auto count = static_cast<size_t>(indices.size);
  kernel->nodes = static_cast<GraphNode*>(std::calloc(count, sizeof(GraphNode)));
  if (!kernel->nodes) return false;
  for (; kernel->node_count < count; ++kernel->node_count) {
    Node* node;
    Registration* registration;
    if (context->GetNodeAndRegistration(context, indices.data[kernel->node_count], &node, &registration) != litert::kOk) {
      return false;
    }
    GraphNode& copy = kernel->nodes[kernel->node_count];
    copy = {*node, registration->builtin_code};
    copy.node.inputs = Copy(node->inputs);
    copy.node.outputs = Copy(node->outputs);
    if (!copy.node.inputs || !copy.node.outputs) {
      ++kernel->node_count;  // for FreeKernel
      return false;
    }
  }
  return true;
}

Kernel* NewKernel(Context* context, const litert::DelegateParams& params, const OpType* type) {
  void* memory = std::malloc(sizeof(Kernel));
  if (!memory) return nullptr;
  auto* kernel = new (memory) Kernel();
  kernel->type = type;
  kernel->delegate = static_cast<BinaryVitDelegate*>(params.delegate);
  kernel->outputs = Copy(params.output_tensors);
  const bool copied = CopyNodes(context, *params.nodes_to_replace, kernel);
  kernel->op = copied ? type->create() : nullptr;
  const bool profile = kernel->delegate->profile;
  if (!kernel->op || !kernel->outputs ||
      (profile && !AddProfileEntry(kernel, OutputName(context, *kernel->outputs)))) {
    FreeKernel(context, kernel);
    return nullptr;
  }
  return kernel;
}

void* InitKernel(Context* context, const char* buffer, size_t) {
  const auto* params = reinterpret_cast<const litert::DelegateParams*>(buffer);
  Node* node;
  Registration* registration;
  const int index = params->nodes_to_replace->data[0];
  if (context->GetNodeAndRegistration(context, index, &node, &registration) != litert::kOk) return nullptr;
  const OpType* type = FindOp(*registration);
  return NewKernel(context, *params, type ? type : &kPointwise);  // an ADD that the host has parted from its MapSum
}

void* InitHead(Context* context, const char* buffer, size_t) {
  return NewKernel(context, *reinterpret_cast<const litert::DelegateParams*>(buffer), &kHead);
}

void* InitPointwise(Context* context, const char* buffer, size_t) {
  return NewKernel(context, *reinterpret_cast<const litert::DelegateParams*>(buffer), &kPointwise);
}

NodeView ViewOf(Context* context, Kernel* kernel) {
  return {context, kernel->nodes, kernel->node_count, kernel->outputs, &kernel->delegate->session, kernel->type->name};
}

// Calls body(place, tensor) for each of the host's tensors of a kernel: the inputs, then the outputs.
template <typename Body>
void ForTensors(const NodeView& view, const Node& node, const Body& body) {
  size_t place = 0;
  for (const IntArray* indices : {node.inputs, node.outputs}) {
    for (int i = 0; i < indices->size; ++i, ++place) {
      if (const litert::Tensor* tensor = view.TensorAt(indices->data[i])) body(place, *tensor);
    }
  }
}

Status PrepareKernel(Context* context, Node* node) {
  auto* kernel = static_cast<Kernel*>(node->user_data);
  if (!kernel) {
    context->ReportError(context, "BinaryVit: a node couldn't be set up");
    return litert::kError;
  }
  const Node& first = kernel->nodes[0].node;
  const size_t size = first.custom_options_size > 0 ? static_cast<size_t>(first.custom_options_size) : 0;
  const Options options(first.custom_options, size);
  const NodeView view = ViewOf(context, kernel);
  if (!kernel->type->prepare(kernel->op, view, options)) return litert::kError;
  if (!kernel->bytes.Resize(static_cast<size_t>(node->inputs->size) + static_cast<size_t>(node->outputs->size))) {
    view.FailForMemory();
    return litert::kError;
  }
  ForTensors(view, *node, [&](size_t i, const litert::Tensor& tensor) { kernel->bytes[i] = tensor.bytes; });
  return litert::kOk;
}

Status InvokeKernel(Context* context, Node* node) {
  auto* kernel = static_cast<Kernel*>(node->user_data);
  // Hosts allocate no memory for an output that nothing reads.
  if (kernel->outputs->size == 0) return litert::kOk;
  const NodeView view = ViewOf(context, kernel);
  // If a second node writes the same tensor, its Prepare came later and may have made the tensor smaller.
  bool fits = true;
  ForTensors(view, *node, [&](size_t i, const litert::Tensor& tensor) {
    fits = fits && tensor.data && tensor.bytes >= kernel->bytes[i];
  });
  if (!fits) {
    view.Fail("a tensor has less data than when this was prepared: two nodes give it");
    return litert::kError;
  }
  if (!kernel->delegate->profile) return kernel->type->invoke(kernel->op, view) ? litert::kOk : litert::kError;
  const uint64_t start = Nanoseconds();
  const bool ok = kernel->type->invoke(kernel->op, view);
  BinaryVitProfileEntry& entry = kernel->delegate->entries[kernel->entry];
  entry.nanoseconds += Nanoseconds() - start;
  entry.calls += 1;
  return ok ? litert::kOk : litert::kError;
}

// The graph before any replacement, and which nodes the delegate replaces.
struct Plan {
  IntArray* nodes = nullptr;
  Buffer<bool> computed;   // of tensors: whether they may differ between runs
  Buffer<bool> pointwise;  // of nodes, in the order of the plan
  bool is_fused = false;   // some nodes are fused operators
  ~Plan() { std::free(nodes); }
};

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

// Calls body(place in the plan, node, registration) for each node, until one returns false.
template <typename Body>
bool ForNodes(Context* context, const IntArray& plan, const Body& body) {
  for (int i = 0; i < plan.size; ++i) {
    Node* node;
    Registration* registration;
    if (context->GetNodeAndRegistration(context, plan.data[i], &node, &registration) != litert::kOk ||
        !body(static_cast<size_t>(i), *node, *registration)) {
      return false;
    }
  }
  return true;
}

// Whether an operator supports a builtin node.
bool Supports(Context* context, BinaryVitDelegate* delegate, const OpType& op, const Node& node,
            const Registration& registration) {
  GraphNode copy = {node, registration.builtin_code};
  return op.supports(NodeView(context, &copy, 1, node.outputs, &delegate->session, op.name));
}

// Marks all tensors except constants and what is computed from constants only, such as weights stored as float16.
bool MarkComputed(Context* context, Plan* plan) {
  for (size_t i = 0; i < plan->computed.size(); ++i) {
    plan->computed[i] = context->tensors[i].allocation != litert::kReadOnlyFile;
  }
  return ForNodes(context, *plan->nodes, [&](size_t, const Node& node, const Registration&) {
    const bool has_inputs = node.inputs && node.inputs->size > 0;
    SetMarks(node.outputs, !has_inputs || HasMark(node.inputs, plan->computed), &plan->computed);
    return true;
  });
}

// Marks the nodes that run together: builtin nodes that are next to each other, and an LceQuantize after one.
bool MarkPointwise(Context* context, BinaryVitDelegate* delegate, Plan* plan) {
  Buffer<bool> given, needed;  // tensors that such nodes compute or read
  if (!given.Resize(context->tensors_size) || !needed.Resize(context->tensors_size)) return false;
  const auto is_builtin = [](const Registration& it) { return it.builtin_code != litert::kBuiltinCustom; };
  bool ok = ForNodes(context, *plan->nodes, [&](size_t i, const Node& node, const Registration& registration) {
    plan->pointwise[i] = (is_builtin(registration) || FindOp(registration) == &kLceQuantize) &&
                         Supports(context, delegate, kPointwise, node, registration);
    if (plan->pointwise[i] && is_builtin(registration)) SetMarks(node.outputs, true, &given);
    if (plan->pointwise[i]) SetMarks(node.inputs, true, &needed);
    return true;
  });
  return ok && ForNodes(context, *plan->nodes, [&](size_t i, const Node& node, const Registration& registration) {
           const bool follows = HasMark(node.inputs, given), leads = HasMark(node.outputs, needed);
           plan->pointwise[i] = plan->pointwise[i] && (follows || (is_builtin(registration) && leads));
           return true;
         });
}

Registration KernelRegistration(const OpType& op, void* (*init)(Context*, const char*, size_t)) {
  Registration kernel = {};
  kernel.init = init;
  kernel.free = FreeKernel;
  kernel.prepare = PrepareKernel;
  kernel.invoke = InvokeKernel;
  kernel.custom_name = op.name;
  kernel.version = 1;
  return kernel;
}

// The host splits the nodes into subsets, so that no other node has to run in between.
Status ReplacePointwise(Context* context, BinaryVitDelegate* delegate, const Plan& plan) {
  IntArray* nodes = Copy(plan.nodes);
  if (!nodes) return litert::kError;
  nodes->size = 0;
  for (size_t i = 0; i < plan.pointwise.size(); ++i) {
    if (plan.pointwise[i]) nodes->data[nodes->size++] = plan.nodes->data[i];
  }
  Status status = litert::kOk;
  if (nodes->size > 0) {
    const Registration kernel = KernelRegistration(kPointwise, InitPointwise);
    status = context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, nodes, delegate);
  }
  std::free(nodes);
  return status;
}

// The operator for a builtin node, or null for the host's own: a product of two computed tensors or, in a graph of fused
// operators, what comes before and after them, so that whole networks give the same bits everywhere.
const OpType* ChooseBuiltin(Context* context, BinaryVitDelegate* delegate, const Plan& plan, const OpType* op,
                            const Node& node, const Registration& registration) {
  const int weights = node.inputs && node.inputs->size > 1 ? node.inputs->data[1] : -1;
  const bool is_computed = IsTensor(weights, plan.computed) && plan.computed[static_cast<size_t>(weights)];
  if (op == &kFullyConnected && !is_computed) op = &kHead;
  const bool is_wanted = op == &kFullyConnected || plan.is_fused;
  return is_wanted && Supports(context, delegate, *op, node, registration) ? op : nullptr;
}

// Whether the node after one adds a constant map to what that computes.
bool HasMapSum(Context* context, BinaryVitDelegate* delegate, const Plan& plan, size_t i, const OpType& op,
               const Node& node, const Registration& registration) {
  if (&op != &kPatchEmbedding && &op != &kPatchMerging) return false;
  if (i + 1 == plan.pointwise.size() || plan.pointwise[i + 1]) return false;
  Node* next;
  Registration* its;
  if (context->GetNodeAndRegistration(context, plan.nodes->data[i + 1], &next, &its) != litert::kOk) return false;
  GraphNode nodes[] = {{node, registration.builtin_code}, {*next, its->builtin_code}};
  const NodeView view(context, nodes, 2, next->outputs, &delegate->session, op.name);
  return MapSum::Follows(view.At(0), view.At(1));
}

// One operator per call: tensors between two of the delegate's nodes stay in the host's arena.
Status ReplaceSingleNodes(Context* context, BinaryVitDelegate* delegate, const Plan& plan) {
  IntArray* nodes = Copy(plan.nodes);
  if (!nodes) return litert::kError;
  const bool ok = ForNodes(context, *plan.nodes, [&](size_t i, const Node& node, const Registration& registration) {
    const OpType* op = FindOp(registration);
    if (!op || plan.pointwise[i]) return true;
    if (op->supports) op = ChooseBuiltin(context, delegate, plan, op, node, registration);
    if (!op) return true;
    nodes->size = HasMapSum(context, delegate, plan, i, *op, node, registration) ? 2 : 1;
    std::memcpy(nodes->data, plan.nodes->data + i, sizeof(int) * static_cast<size_t>(nodes->size));
    const Registration kernel = KernelRegistration(*op, op == &kHead ? InitHead : InitKernel);
    return context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, nodes, delegate) == litert::kOk;
  });
  std::free(nodes);
  return ok ? litert::kOk : litert::kError;
}

Status PrepareDelegate(Context* context, litert::Delegate* base) {
  auto* delegate = static_cast<BinaryVitDelegate*>(base);
  // The graphs of one interpreter share a thread pool, which two interpreters could use at the same time.
  const void* interpreter = context->GetExternalContext(context, litert::kCpuBackendContext);
  if (delegate->interpreter && delegate->interpreter != interpreter) {
    context->ReportError(context, "BinaryVit: the delegate belongs to another interpreter; create one for each");
    return litert::kError;
  }
  delegate->interpreter = interpreter;
  // Operators allocate memory per thread when they are prepared, so a second graph can't change the number of threads.
  if (delegate->num_threads == 0) {
    delegate->num_threads = context->recommended_num_threads > 0 ? context->recommended_num_threads : 1;
  }
  delegate->session.pool.SetThreads(delegate->num_threads);

  IntArray* nodes;
  if (context->GetExecutionPlan(context, &nodes) != litert::kOk) return litert::kError;
  Plan plan;
  plan.nodes = Copy(nodes);  // the host's plan changes with every replacement
  if (!plan.nodes) return litert::kError;
  bool has_custom = false;
  const bool ok = ForNodes(context, *plan.nodes, [&](size_t, const Node&, const Registration& registration) {
    const OpType* op = FindOp(registration);
    has_custom |= op && !op->supports;
    plan.is_fused |= IsFused(op);
    return true;
  });
  if (!ok) return litert::kError;
  if (!has_custom) return litert::kOk;
  if (!plan.computed.Resize(context->tensors_size) || !plan.pointwise.Resize(static_cast<size_t>(plan.nodes->size)) ||
      !MarkComputed(context, &plan) || !MarkPointwise(context, delegate, &plan)) {
    return litert::kError;
  }
  const Status status = ReplacePointwise(context, delegate, plan);
  return status == litert::kOk ? ReplaceSingleNodes(context, delegate, plan) : status;
}

// Parses a number of threads. Returns 0 if it is invalid.
int ParseThreads(const char* text) {
  char* end;
  const long value = std::strtol(text, &end, 10);
  return end != text && *end == '\0' && value >= 1 && value <= kMaxThreads ? static_cast<int>(value) : 0;
}

}  // namespace
}  // namespace binaryvit

BINARYVIT_EXPORT TfLiteDelegate* tflite_plugin_create_delegate(const char* const* keys, const char* const* values,
                                                               size_t count, void (*report)(const char*)) {
  using namespace binaryvit;
  char message[200];
  const auto fail = [&]() -> TfLiteDelegate* {
    if (report) report(message);
    return nullptr;
  };
  int num_threads = 0;
  bool profile = false;
  for (size_t i = 0; i < count; ++i) {
    if (std::strcmp(keys[i], "num_threads") == 0) {
      num_threads = ParseThreads(values[i]);
      if (num_threads == 0) {
        std::snprintf(message, sizeof message, "binaryvit: num_threads must be 1 to %d, but is '%.50s'", kMaxThreads,
                      values[i]);
        return fail();
      }
    } else if (std::strcmp(keys[i], "profile") == 0) {
      profile = std::strcmp(values[i], "1") == 0;
      if (!profile && std::strcmp(values[i], "0") != 0) {
        std::snprintf(message, sizeof message, "binaryvit: profile must be 0 or 1, but is '%.50s'", values[i]);
        return fail();
      }
    } else {
      std::snprintf(message, sizeof message, "binaryvit: unknown option '%.50s'; there are num_threads and profile",
                    keys[i]);
      return fail();
    }
  }
  const KernelSet* kernels = SelectKernels();
  if (!kernels) {
    std::snprintf(message, sizeof message, "binaryvit: BINARYVIT_KERNELS is '%.50s'; it must be one of %s, and run here",
                  std::getenv("BINARYVIT_KERNELS"), KernelNames());
    return fail();
  }
  void* memory = std::calloc(1, sizeof(BinaryVitDelegate));
  if (!memory) {
    std::snprintf(message, sizeof message, "binaryvit: out of memory");
    return fail();
  }
  auto* delegate = new (memory) BinaryVitDelegate();
  delegate->Prepare = PrepareDelegate;
  delegate->flags = litert::kAllowDynamicTensors;
  delegate->session.kernels = kernels;
  delegate->num_threads = num_threads;
  delegate->profile = profile;
  return delegate;
}

BINARYVIT_EXPORT void tflite_plugin_destroy_delegate(TfLiteDelegate* base) {
  if (!base) return;
  auto* delegate = static_cast<binaryvit::BinaryVitDelegate*>(base);
  std::free(delegate->entries);
  delegate->~BinaryVitDelegate();
  std::free(delegate);
}

BINARYVIT_EXPORT const char* binaryvit_kernels(const TfLiteDelegate* base) {
  return static_cast<const binaryvit::BinaryVitDelegate*>(base)->session.kernels->name;
}

BINARYVIT_EXPORT size_t binaryvit_profile(const TfLiteDelegate* base, BinaryVitProfileEntry* entries, size_t capacity) {
  const auto* delegate = static_cast<const binaryvit::BinaryVitDelegate*>(base);
  for (size_t i = 0; i < delegate->entry_count && i < capacity; ++i) entries[i] = delegate->entries[i];
  return delegate->entry_count;
}
