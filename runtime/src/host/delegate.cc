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
#include "host/plan.h"

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

// Lets the operators of a plan run its nodes. `nodes` is memory for as many indices as it has.
Status ReplaceNodes(Context* context, BinaryVitDelegate* delegate, const Plan& plan, IntArray* nodes) {
  const auto replace = [&](const OpType& op, void* (*init)(Context*, const char*, size_t)) {
    const Registration kernel = KernelRegistration(op, init);
    return context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, nodes, delegate);
  };
  const auto count = static_cast<size_t>(plan.nodes().size);
  nodes->size = 0;
  for (size_t i = 0; i < count; ++i) {
    if (plan.OpAt(i) == &kPointwise) nodes->data[nodes->size++] = plan.nodes().data[i];
  }
  // The host splits these into subsets, so that no other node has to run in between.
  if (nodes->size > 0 && replace(kPointwise, InitPointwise) != litert::kOk) return litert::kError;
  // All others one at a time: tensors between two of the delegate's nodes stay in the host's arena.
  for (size_t i = 0; i < count; ++i) {
    const OpType* op = plan.OpAt(i);
    if (!op || op == &kPointwise) continue;
    nodes->size = static_cast<int>(plan.CountAt(i));
    std::memcpy(nodes->data, plan.nodes().data + i, sizeof(int) * plan.CountAt(i));
    if (replace(*op, op == &kHead ? InitHead : InitKernel) != litert::kOk) return litert::kError;
  }
  return litert::kOk;
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

  Plan plan;
  if (!plan.Make(context, &delegate->session)) return litert::kError;
  IntArray* nodes = Copy(&plan.nodes());
  if (!nodes) return litert::kError;
  const Status status = ReplaceNodes(context, delegate, plan, nodes);
  std::free(nodes);
  return status;
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
