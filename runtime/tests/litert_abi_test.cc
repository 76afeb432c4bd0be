// A delegate that prints what it reads through litert_abi.h; test_litert_abi.py compares that with the graph.
#include "host/litert_abi.h"

#include <cstdio>
#include <cstdlib>

using namespace binaryvit::litert;

static void Print(const char* name, const IntArray* array) {
  std::printf(" %s=[", name);
  for (int i = 0; array && i < array->size; ++i) std::printf(i ? ",%d" : "%d", array->data[i]);
  std::printf("]");
}

static void PrintTensors(const Context* context) {
  for (size_t i = 0; i < context->tensors_size; ++i) {
    const Tensor& tensor = context->tensors[i];
    std::printf("tensor %s type=%d constant=%d bytes=%zu scale=%g zero_point=%d quantization=%d", tensor.name, tensor.type,
                tensor.allocation == kReadOnlyFile && tensor.data, tensor.bytes, static_cast<double>(tensor.quantization.scale),
                tensor.quantization.zero_point, tensor.quantization_details.type);
    Print("dims", tensor.dims);
    std::printf("\n");
  }
}

static void PrintNode(const Node& node, const Registration& registration) {
  std::printf("node %d", registration.builtin_code);
  Print("inputs", node.inputs);
  Print("outputs", node.outputs);
  if (registration.builtin_code == kBuiltinAdd) {
    std::printf(" activation=%d", static_cast<const ArithmeticParams*>(node.builtin_data)->activation);
  } else if (registration.builtin_code == kBuiltinConv2d) {
    const auto& params = *static_cast<const ConvParams*>(node.builtin_data);
    std::printf(" padding=%d strides=%dx%d activation=%d dilations=%dx%d", params.padding, params.stride_height,
                params.stride_width, params.activation, params.dilation_height, params.dilation_width);
  } else if (registration.builtin_code == kBuiltinDepthwiseConv2d) {
    const auto& params = *static_cast<const DepthwiseConvParams*>(node.builtin_data);
    std::printf(" padding=%d strides=%dx%d multiplier=%d activation=%d", params.padding, params.stride_height,
                params.stride_width, params.depth_multiplier, params.activation);
  } else if (registration.builtin_code == kBuiltinFullyConnected) {
    const auto& params = *static_cast<const FullyConnectedParams*>(node.builtin_data);
    std::printf(" activation=%d format=%d keep=%d", params.activation, params.weights_format, params.keep_num_dims);
  } else if (registration.builtin_code == kBuiltinMean) {
    std::printf(" keep=%d", static_cast<const ReducerParams*>(node.builtin_data)->keep_dims);
  } else if (registration.builtin_code == kBuiltinCustom) {
    std::printf(" name=%s options=%.*s", registration.custom_name, node.custom_options_size,
                static_cast<const char*>(node.custom_options));
  }
  std::printf("\n");
}

static void* Init(Context*, const char* buffer, size_t) {
  const auto& params = *reinterpret_cast<const DelegateParams*>(buffer);
  std::printf("replaced");
  Print("nodes", params.nodes_to_replace);
  Print("inputs", params.input_tensors);
  Print("outputs", params.output_tensors);
  std::printf("\n");
  return nullptr;
}

static Status PrepareKernel(Context* context, Node* node) {
  auto* shape = static_cast<IntArray*>(std::malloc(3 * sizeof(int)));
  if (!shape) return kError;
  shape->size = 2;
  shape->data[0] = 5;
  shape->data[1] = 7;
  return context->ResizeTensor(context, &context->tensors[node->outputs->data[0]], shape);
}

static Status InvokeKernel(Context* context, Node* node) {
  const Tensor& output = context->tensors[node->outputs->data[0]];
  for (size_t i = 0; i < output.bytes / sizeof(float); ++i) static_cast<float*>(output.data)[i] = static_cast<float>(i);
  return kOk;
}

static Status Prepare(Context* context, Delegate* delegate) {
  std::printf("threads=%d interpreter=%d\n", context->recommended_num_threads,
              context->GetExternalContext(context, kCpuBackendContext) != nullptr);
  PrintTensors(context);
  IntArray* plan;
  if (context->GetExecutionPlan(context, &plan) != kOk) return kError;
  IntArray custom = {0, {0}};
  for (int i = 0; i < plan->size; ++i) {
    Node* node;
    Registration* registration;
    if (context->GetNodeAndRegistration(context, plan->data[i], &node, &registration) != kOk) return kError;
    PrintNode(*node, *registration);
    if (registration->builtin_code == kBuiltinCustom) custom = {1, {plan->data[i]}};
  }
  Registration kernel = {};
  kernel.init = Init;
  kernel.prepare = PrepareKernel;
  kernel.invoke = InvokeKernel;
  kernel.custom_name = "canary";
  kernel.version = 1;
  return context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, &custom, delegate);
}

extern "C" Delegate* tflite_plugin_create_delegate(const char* const*, const char* const*, size_t, void (*)(const char*)) {
  static Delegate delegate;
  delegate = {};
  delegate.Prepare = Prepare;
  delegate.flags = kAllowDynamicTensors;
  return &delegate;
}

extern "C" void tflite_plugin_destroy_delegate(Delegate*) { std::fflush(stdout); }
