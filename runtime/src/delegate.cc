// The delegate: takes over every custom operator that it knows, one node at a time, and leaves the rest to the host, but for
// builtin operators whose operands a network with such operators makes binary.
//
// It is loaded through LiteRT's external-delegate interface and calls the host through the structs of litert_abi.h alone, so
// one build runs in every host with that interface.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "binaryvit_runtime.h"
#include "litert_abi.h"
#include "op.h"

#define BINARYVIT_EXPORT extern "C" __attribute__((visibility("default")))

namespace binaryvit {
namespace {

using litert::Context;
using litert::IntArray;
using litert::Node;
using litert::Registration;
using litert::Status;

const OpType* const kOps[] = {&kLceQuantize, &kLceDequantize, &kLceBconv2d,  &kLceBMaxPool2d,
                              &kAttention,   &kFeedForward,   &kPatchMerging, &kPooling,
                              &kFullyConnected};

const OpType* FindOp(const Registration& registration) {
  const bool is_custom = registration.builtin_code == litert::kBuiltinCustom;
  for (const OpType* op : kOps) {
    if (op->builtin_code != registration.builtin_code) continue;
    if (!is_custom || (registration.custom_name && std::strcmp(registration.custom_name, op->name) == 0)) return op;
  }
  return nullptr;
}

struct BinaryVitDelegate : litert::Delegate {
  Session session;
  int num_threads = 0;  // 0: as the first graph's interpreter recommends
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

// The kernel of one node. The host's own node lists inputs without the optional ones that are left out, so the original
// lists are kept.
struct Kernel {
  const OpType* type;
  void* op;
  BinaryVitDelegate* delegate;
  size_t entry;  // of the profile, where there is one
  Node original;
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

// Of the first output, where there is one: hosts take nodes without.
const char* OutputName(const Context* context, const IntArray& outputs) {
  const int index = outputs.size > 0 ? outputs.data[0] : -1;
  return index >= 0 && static_cast<size_t>(index) < context->tensors_size ? context->tensors[index].name : nullptr;
}

void FreeKernel(Context*, void* data) {
  auto* kernel = static_cast<Kernel*>(data);
  if (!kernel) return;
  if (kernel->op) kernel->type->destroy(kernel->op);
  std::free(kernel->original.inputs);
  std::free(kernel->original.outputs);
  std::free(kernel);
}

void* InitKernel(Context* context, const char* buffer, size_t) {
  const auto* params = reinterpret_cast<const litert::DelegateParams*>(buffer);
  Node* node;
  Registration* registration;
  const int index = params->nodes_to_replace->data[0];
  if (context->GetNodeAndRegistration(context, index, &node, &registration) != litert::kOk) return nullptr;
  auto* kernel = static_cast<Kernel*>(std::calloc(1, sizeof(Kernel)));
  if (!kernel) return nullptr;
  kernel->type = FindOp(*registration);
  kernel->delegate = static_cast<BinaryVitDelegate*>(params->delegate);
  kernel->original = *node;
  kernel->original.inputs = Copy(node->inputs);
  kernel->original.outputs = Copy(node->outputs);
  kernel->op = kernel->type ? kernel->type->create() : nullptr;
  if (!kernel->op || !kernel->original.inputs || !kernel->original.outputs) {
    FreeKernel(context, kernel);
    return nullptr;
  }
  if (kernel->delegate->profile) {
    if (!AddProfileEntry(kernel, OutputName(context, *kernel->original.outputs))) {
      FreeKernel(context, kernel);
      return nullptr;
    }
  }
  return kernel;
}

Status PrepareKernel(Context* context, Node* node) {
  auto* kernel = static_cast<Kernel*>(node->user_data);
  if (!kernel) {
    context->ReportError(context, "BinaryVit: a node couldn't be set up");
    return litert::kError;
  }
  const NodeView view(context, &kernel->original, &kernel->delegate->session, kernel->type->name);
  const int size = kernel->original.custom_options_size;
  const Options options(kernel->original.custom_options, size > 0 ? static_cast<size_t>(size) : 0);
  return kernel->type->prepare(kernel->op, view, options) ? litert::kOk : litert::kError;
}

Status InvokeKernel(Context* context, Node* node) {
  auto* kernel = static_cast<Kernel*>(node->user_data);
  const NodeView view(context, &kernel->original, &kernel->delegate->session, kernel->type->name);
  if (!kernel->delegate->profile) return kernel->type->invoke(kernel->op, view) ? litert::kOk : litert::kError;
  const uint64_t start = Nanoseconds();
  const bool ok = kernel->type->invoke(kernel->op, view);
  BinaryVitProfileEntry& entry = kernel->delegate->entries[kernel->entry];
  entry.nanoseconds += Nanoseconds() - start;
  entry.calls += 1;
  return ok ? litert::kOk : litert::kError;
}

// A network without any is all the host's.
bool HasCustomOps(Context* context, const IntArray& plan) {
  for (int i = 0; i < plan.size; ++i) {
    Node* node;
    Registration* registration;
    if (context->GetNodeAndRegistration(context, plan.data[i], &node, &registration) != litert::kOk) continue;
    const OpType* op = FindOp(*registration);
    if (op && !op->claims) return true;
  }
  return false;
}

bool IsTensor(int index, const Buffer<bool>& marks) { return index >= 0 && static_cast<size_t>(index) < marks.size(); }

// Marks the tensors that aren't the same in each run: those that are neither constants nor made of constants alone, as
// weights are that a file holds in float16.
Status MarkComputed(Context* context, const IntArray& plan, Buffer<bool>* marks) {
  for (size_t i = 0; i < marks->size(); ++i) (*marks)[i] = context->tensors[i].allocation != litert::kReadOnlyFile;
  for (int i = 0; i < plan.size; ++i) {
    Node* node;
    Registration* registration;
    if (context->GetNodeAndRegistration(context, plan.data[i], &node, &registration) != litert::kOk) return litert::kError;
    if (!node->inputs || !node->outputs) continue;
    bool any = node->inputs->size == 0;
    for (int j = 0; j < node->inputs->size; ++j) {
      const int input = node->inputs->data[j];
      any |= IsTensor(input, *marks) && (*marks)[static_cast<size_t>(input)];
    }
    for (int j = 0; j < node->outputs->size; ++j) {
      const int output = node->outputs->data[j];
      if (IsTensor(output, *marks)) (*marks)[static_cast<size_t>(output)] = any;
    }
  }
  return litert::kOk;
}

bool HasComputedWeights(const Node& node, const Buffer<bool>& computed) {
  const int weights = node.inputs && node.inputs->size > 1 ? node.inputs->data[1] : -1;
  return IsTensor(weights, computed) && computed[static_cast<size_t>(weights)];
}

Status PrepareDelegate(Context* context, litert::Delegate* base) {
  auto* delegate = static_cast<BinaryVitDelegate*>(base);
  // Operators have memory for as many threads as there were when they were prepared: a second graph can't change that.
  if (delegate->num_threads == 0) {
    delegate->num_threads = context->recommended_num_threads > 0 ? context->recommended_num_threads : 1;
  }
  delegate->session.pool.SetThreads(delegate->num_threads);

  IntArray* plan;
  if (context->GetExecutionPlan(context, &plan) != litert::kOk) return litert::kError;
  plan = Copy(plan);  // the host's changes with every replacement
  Buffer<bool> computed;
  Status status = plan && computed.Resize(context->tensors_size) ? litert::kOk : litert::kError;
  const bool has_custom_ops = status == litert::kOk && HasCustomOps(context, *plan);
  if (has_custom_ops) status = MarkComputed(context, *plan, &computed);
  for (int i = 0; has_custom_ops && i < plan->size && status == litert::kOk; ++i) {
    Node* node;
    Registration* registration;
    status = context->GetNodeAndRegistration(context, plan->data[i], &node, &registration);
    if (status != litert::kOk) break;
    const OpType* op = FindOp(*registration);
    if (!op) continue;
    if (op->claims && (!HasComputedWeights(*node, computed) ||
                       !op->claims(NodeView(context, node, &delegate->session, op->name)))) {
      continue;
    }
    Registration kernel = {};
    kernel.init = InitKernel;
    kernel.free = FreeKernel;
    kernel.prepare = PrepareKernel;
    kernel.invoke = InvokeKernel;
    kernel.custom_name = op->name;
    kernel.version = 1;
    // One node a call: tensors between two of our nodes stay in the host's arena.
    const IntArray one = {1, {plan->data[i]}};
    status = context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, &one, delegate);
  }
  std::free(plan);
  return status;
}

// The header's TfLiteDelegate, which it leaves to the host to define, is the one of litert_abi.h.
TfLiteDelegate* AsHosts(litert::Delegate* delegate) { return reinterpret_cast<TfLiteDelegate*>(delegate); }

const BinaryVitDelegate* AsOurs(const TfLiteDelegate* delegate) {
  return static_cast<const BinaryVitDelegate*>(reinterpret_cast<const litert::Delegate*>(delegate));
}

// Reads a whole positive number; 0 for anything else.
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
  return AsHosts(delegate);
}

BINARYVIT_EXPORT void tflite_plugin_destroy_delegate(TfLiteDelegate* hosts) {
  if (!hosts) return;
  auto* delegate = const_cast<binaryvit::BinaryVitDelegate*>(binaryvit::AsOurs(hosts));
  std::free(delegate->entries);
  delegate->~BinaryVitDelegate();
  std::free(delegate);
}

BINARYVIT_EXPORT const char* binaryvit_kernels(const TfLiteDelegate* hosts) {
  return binaryvit::AsOurs(hosts)->session.kernels->name;
}

BINARYVIT_EXPORT size_t binaryvit_profile(const TfLiteDelegate* hosts, BinaryVitProfileEntry* entries, size_t capacity) {
  const auto* delegate = binaryvit::AsOurs(hosts);
  for (size_t i = 0; i < delegate->entry_count && i < capacity; ++i) entries[i] = delegate->entries[i];
  return delegate->entry_count;
}
