// The part of LiteRT's C ABI that a delegate with custom kernels needs, on 64-bit Linux and Android.
//
// LiteRT's Python packages ship no headers. The structs below have the layout of tflite/c/common.h, which has not changed
// from TFLite 2.14 to LiteRT 2.3; unused fields keep their place under short names. test_litert_abi.py reads
// them back from the oldest supported version and from the one that is installed.
#ifndef BINARYVIT_HOST_LITERT_ABI_H_
#define BINARYVIT_HOST_LITERT_ABI_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace binaryvit::litert {

static_assert(sizeof(void*) == 8, "the layouts below are those of 64-bit hosts");

enum Status : int { kOk = 0, kError = 1 };

enum Type : int { kFloat32 = 1, kInt32 = 2, kBool = 6, kInt8 = 9 };

enum Allocation : int { kReadOnlyFile = 1 };  // kTfLiteMmapRo: a constant of the flatbuffer

enum QuantizationType : int { kNoQuantization = 0, kAffineQuantization = 1 };

// Builtin codes of the schema.
constexpr int kBuiltinAdd = 0;
constexpr int kBuiltinConv2d = 3;
constexpr int kBuiltinDepthwiseConv2d = 4;
constexpr int kBuiltinFullyConnected = 9;
constexpr int kBuiltinMul = 18;
constexpr int kBuiltinMean = 40;
constexpr int kBuiltinPrelu = 54;
constexpr int kBuiltinTile = 69;
constexpr int kBuiltinAddN = 106;
constexpr int kBuiltinCustom = 32;  // of every custom operator

enum Activation : int { kNoActivation = 0, kRelu = 1, kReluN1To1 = 2, kRelu6 = 3 };

enum Padding : int { kPaddingSame = 1, kPaddingValid = 2 };

constexpr int64_t kAllowDynamicTensors = 1;      // without it, hosts reject delegates for graphs with dynamic tensors

struct Context;
struct Delegate;
struct Node;

// A counted array that comes from malloc and goes to free.
struct IntArray {
  int size;
  int data[1];
};

// Null for null, and if there is no memory.
static inline IntArray* Copy(const IntArray* array) {
  if (!array) return nullptr;
  const size_t size = sizeof(int) * (static_cast<size_t>(array->size) + 1);
  void* copy = std::malloc(size);
  return static_cast<IntArray*>(copy ? std::memcpy(copy, array, size) : nullptr);
}

struct Quantization {
  float scale;
  int32_t zero_point;
};

struct Tensor {
  int type;
  void* data;
  IntArray* dims;
  Quantization quantization;
  int allocation;
  size_t bytes;
  const void* mapping;
  const char* name;
  Delegate* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  struct {
    int type;
    void* params;
  } quantization_details;
  void* sparsity;
  const IntArray* dims_signature;
};
static_assert(sizeof(Tensor) == 112, "TfLiteTensor");

struct Node {
  IntArray* inputs;  // -1 for an omitted optional input
  IntArray* outputs;
  IntArray* intermediates;
  IntArray* temporaries;
  void* user_data;
  void* builtin_data;
  const void* custom_options;
  int custom_options_size;
  Delegate* delegate;
  bool might_have_side_effect;
};
static_assert(sizeof(Node) == 80, "TfLiteNode");

struct Registration {
  void* (*init)(Context*, const char* buffer, size_t size);
  void (*free)(Context*, void* data);
  Status (*prepare)(Context*, Node*);
  Status (*invoke)(Context*, Node*);
  const char* (*profiling_string)(const Context*, const Node*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* external;
  void* async_kernel;
  uint64_t inplace_operator;
  uint64_t reserved[8];  // newer hosts read a longer struct, and must find zeros there
};

// The builtin data of nodes: the first fields of the structs of tflite/c/builtin_op_data.h.
struct ArithmeticParams {  // ADD and MUL
  int activation;
};

struct ConvParams {
  int padding;
  int stride_width;
  int stride_height;
  int activation;
  int dilation_width;
  int dilation_height;
};

struct DepthwiseConvParams {
  int padding;
  int stride_width;
  int stride_height;
  int depth_multiplier;
  int activation;
};

struct FullyConnectedParams {
  int activation;
  int weights_format;  // 0: rows of values, one per unit
  bool keep_num_dims;
};

struct ReducerParams {  // MEAN
  bool keep_dims;
};

struct DelegateParams {
  Delegate* delegate;
  IntArray* nodes_to_replace;
  IntArray* input_tensors;
  IntArray* output_tensors;
};

struct Context {
  size_t tensors_size;
  Status (*GetExecutionPlan)(Context*, IntArray** plan);
  Tensor* tensors;
  void* impl;
  Status (*ResizeTensor)(Context*, Tensor*, IntArray* shape);  // takes ownership of the array
  void (*ReportError)(Context*, const char* format, ...);
  Status (*AddTensors)(Context*, int count, int* first);
  Status (*GetNodeAndRegistration)(Context*, int index, Node**, Registration**);
  Status (*ReplaceNodeSubsetsWithDelegateKernels)(Context*, Registration, const IntArray* nodes, Delegate*);
  int recommended_num_threads;  // -1 if the kernel may choose
  void* (*GetExternalContext)(Context*, int type);
};

constexpr int kCpuBackendContext = 3;  // a type of external context; each interpreter has its own

struct Delegate {
  void* data;
  Status (*Prepare)(Context*, Delegate*);
  Status (*CopyFromBufferHandle)(Context*, Delegate*, int, Tensor*);
  Status (*CopyToBufferHandle)(Context*, Delegate*, int, Tensor*);
  void (*FreeBufferHandle)(Context*, Delegate*, int*);
  int64_t flags;
  void* opaque_delegate_builder;
  uint64_t reserved[8];
};

}  // namespace binaryvit::litert

#endif  // BINARYVIT_HOST_LITERT_ABI_H_
