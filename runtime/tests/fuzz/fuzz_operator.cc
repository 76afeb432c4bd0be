// A fuzz target for libFuzzer: bytes describe one node of a model, which goes the way that a host takes it: through the
// delegate to the operator's Prepare, the allocation of its tensors and Invoke. The host here is as small as the delegate's
// interface, and trusts a model as little as LiteRT does without its verifier: shapes, indices and data may be anything.
//
// The bytes, little-endian, zeros after the last:
//
//   u8 operator   u8 kernel set   u8 threads   u8 switches (see Switches)
//   u8 options    0: u8 count, and for each of them i32 value, u8 type; their names are the operator's
//                 1: u8 count, and that many bytes of a flexbuffer
//   u8 count of inputs, and for each of them and the output
//       u8 storage, and where it isn't left out or one of the inputs:
//       u8 type, u8 rank, i32 for each dimension, u8 quantised, and then f32 scale and i32 zero point
//       i16 bytes more than the shape needs, u8 distance of the data from an aligned address, u8 content
//   where it is resized: i32 for each dimension of the first input
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "binaryvit_runtime.h"
#include "litert_abi.h"

namespace {

using namespace binaryvit::litert;

// A host's own memory would be used up, or the time, where these don't hold.
constexpr size_t kMostConstantBytes = size_t{1} << 20, kMostComputedBytes = size_t{1} << 18;
constexpr size_t kMostWork = size_t{1} << 23;
constexpr size_t kSlowBytes = size_t{1} << 22, kHopelessBytes = size_t{1} << 33;

enum Switches : uint8_t { kResizes = 1, kProfiles = 2, kRecommendsThreads = 4, kRunsTwice = 8 };
enum Storage : uint8_t { kComputed, kConstant, kLeftOut, kFirstInput, kNoTensor, kStorages };
enum Content : uint8_t { kReals, kBits, kZeros, kContents };

struct Operator {
  const char* name;
  std::vector<const char*> options;
};

const std::vector<Operator>& Operators() {
  static const std::vector<Operator> operators = {
      {"LceQuantize", {}},
      {"LceDequantize", {}},
      {"LceBconv2d",
       {"channels_in", "dilation_height_factor", "dilation_width_factor", "fused_activation_function", "pad_values",
        "padding", "stride_height", "stride_width"}},
      {"LceBMaxPool2d", {"filter_height", "filter_width", "padding", "stride_height", "stride_width"}},
      {"BinaryVitAttention", {"heads", "reduction", "residual"}},
      {"BinaryVitFeedForward", {"residual"}},
      {"BinaryVitPatchMerging", {}},
      {"BinaryVitPooling", {"residual", "vertical"}},
      {"Unknown", {"residual"}},
  };
  return operators;
}

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  template <typename T>
  T Take() {
    T value = {};
    const size_t size = std::min(left_, sizeof value);
    if (size > 0) std::memcpy(&value, data_, size);
    data_ += size;
    left_ -= size;
    return value;
  }

  uint8_t Choice(size_t count) { return static_cast<uint8_t>(Take<uint8_t>() % count); }

 private:
  const uint8_t* data_;
  size_t left_;
};

IntArray* NewArray(const std::vector<int>& values) {
  auto* array = static_cast<IntArray*>(std::malloc(sizeof(int) * (values.size() + 1)));
  array->size = static_cast<int>(values.size());
  std::copy(values.begin(), values.end(), array->data);
  return array;
}

// Options as flexbuffers write them: the keys, the vector of their places, the map, its own place. All numbers take 4 bytes.
std::string Flexbuffer(const std::vector<const char*>& names, const std::vector<std::pair<int32_t, uint8_t>>& values) {
  std::string bytes;
  const auto add = [&](size_t number) {
    const auto value = static_cast<uint32_t>(number);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  std::vector<size_t> places;
  for (size_t i = 0; i < values.size(); ++i) {
    places.push_back(bytes.size());
    bytes.append(i < names.size() ? names[i] : "more").push_back('\0');
  }
  add(places.size());
  const size_t keys = bytes.size();
  for (const size_t place : places) add(bytes.size() - place);
  add(bytes.size() - keys);
  add(4);
  add(values.size());
  const size_t map = bytes.size();
  for (const auto& value : values) add(static_cast<uint32_t>(value.first));
  for (const auto& value : values) bytes.push_back(static_cast<char>(value.second << 2 | 2));
  add(bytes.size() - map);
  bytes.push_back(static_cast<char>(9 << 2 | 2));
  bytes.push_back(4);
  return bytes;
}

// Memory of just this size, so that the address sanitiser sees each byte that is read beyond.
struct Block {
  char* memory = nullptr;
  void* Allocate(size_t bytes, size_t offset) {
    std::free(memory);
    memory = static_cast<char*>(std::malloc(bytes + offset));
    return memory + offset;
  }
  ~Block() { std::free(memory); }
};

struct Host {
  Context context = {};
  Delegate* delegate = nullptr;
  std::vector<Tensor> tensors;
  std::vector<Block> blocks;
  Node node = {}, kernel_node = {};
  Registration registration = {}, kernel = {};
  IntArray* plan = nullptr;
  std::string message;
  const char* outcome = "not prepared";  // where there is no message
  std::string options;
  std::vector<Content> contents;  // of each tensor
  uint32_t random = 1;
  bool valid = true;  // as far as a host would come

  explicit Host(Bytes bytes);
  ~Host();
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  int AddTensor(Bytes& bytes);
  void Fill(void* data, size_t size, Content content);
  bool Allocate();
  bool IsSlow() const;
  bool IsCheap() const;
  void Run(Bytes& bytes, uint8_t switches);
  bool PrepareAndInvoke(bool twice);
};

size_t ElementSize(int type) {
  if (type == kBool || type == kInt8) return 1;
  return type == kFloat32 || type == kInt32 ? 4 : 8;
}

// False where the shape has negative sizes or too many elements for any host.
bool BytesOf(const Tensor& tensor, size_t* bytes) {
  *bytes = ElementSize(tensor.type);
  for (int i = 0; i < tensor.dims->size; ++i) {
    if (tensor.dims->data[i] < 0) return false;
    if (__builtin_mul_overflow(*bytes, static_cast<size_t>(tensor.dims->data[i]), bytes)) return false;
  }
  return true;
}

Host& HostOf(Context* context) { return *static_cast<Host*>(context->impl); }

Status GetExecutionPlan(Context* context, IntArray** plan) {
  *plan = HostOf(context).plan;
  return kOk;
}

Status GetNodeAndRegistration(Context* context, int index, Node** node, Registration** registration) {
  if (index != 0) return kError;
  *node = &HostOf(context).node;
  *registration = &HostOf(context).registration;
  return kOk;
}

Status ReplaceNodes(Context* context, Registration kernel, const IntArray* nodes, Delegate* delegate) {
  Host& host = HostOf(context);
  host.kernel = kernel;
  std::vector<int> inputs;  // without those that are left out
  for (int i = 0; i < host.node.inputs->size; ++i) {
    if (host.node.inputs->data[i] >= 0) inputs.push_back(host.node.inputs->data[i]);
  }
  IntArray* list = NewArray(inputs);
  DelegateParams params = {delegate, const_cast<IntArray*>(nodes), list, host.node.outputs};
  host.kernel_node.user_data = kernel.init(context, reinterpret_cast<const char*>(&params), 0);
  host.kernel_node.delegate = delegate;
  std::free(list);
  return kOk;
}

Status ResizeTensor(Context*, Tensor* tensor, IntArray* shape) {
  std::free(tensor->dims);
  tensor->dims = shape;
  for (int i = 0; i < shape->size; ++i) {
    if (shape->data[i] < 0) std::abort();  // no operator may ask for it
  }
  return kOk;
}

void ReportError(Context* context, const char* format, ...) {
  char text[1000];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  HostOf(context).message = text;
}

Host::Host(Bytes bytes) {
  const Operator& op = Operators()[bytes.Choice(Operators().size())];
  const char* const sets[] = {"", "scalar", "sse", "avx2", "avx512"};
  setenv("BINARYVIT_KERNELS", sets[bytes.Choice(5)], 1);
  const uint8_t threads = bytes.Take<uint8_t>();
  const auto switches = bytes.Take<uint8_t>();

  if (bytes.Choice(2) == 0) {
    std::vector<std::pair<int32_t, uint8_t>> values(bytes.Choice(12));
    for (auto& value : values) {
      value.first = bytes.Take<int32_t>();
      value.second = bytes.Choice(64);
    }
    options = Flexbuffer(op.options, values);
  } else {
    options.resize(bytes.Take<uint8_t>());
    for (char& byte : options) byte = bytes.Take<char>();
  }
  Block exact_options;
  node.custom_options = std::memcpy(exact_options.Allocate(options.size(), 0), options.data(), options.size());
  node.custom_options_size = static_cast<int>(options.size());

  const size_t inputs = bytes.Choice(9);
  tensors.reserve(inputs + 1);
  blocks = std::vector<Block>(inputs + 1);
  std::vector<int> indices;
  for (size_t i = 0; i < inputs && valid; ++i) indices.push_back(AddTensor(bytes));
  node.inputs = NewArray(indices);
  node.outputs = NewArray({AddTensor(bytes)});
  registration.builtin_code = kBuiltinCustom;
  registration.custom_name = op.name;
  plan = NewArray({0});
  kernel_node.inputs = kernel_node.outputs = NewArray({});

  context.tensors = tensors.data();
  context.tensors_size = tensors.size();
  context.impl = this;
  context.GetExecutionPlan = GetExecutionPlan;
  context.ResizeTensor = ResizeTensor;
  context.ReportError = ReportError;
  context.GetNodeAndRegistration = GetNodeAndRegistration;
  context.ReplaceNodeSubsetsWithDelegateKernels = ReplaceNodes;
  const int count = threads % 8 < 6 ? 1 : threads % 8 - 4;
  context.recommended_num_threads = switches & kRecommendsThreads ? count : -1;

  const std::string thread_text = std::to_string(count);
  const char* const keys[] = {"profile", "num_threads"};
  const char* const values[] = {switches & kProfiles ? "1" : "0", thread_text.c_str()};
  const auto create = [&]() {
    return reinterpret_cast<Delegate*>(
        tflite_plugin_create_delegate(keys, values, switches & kRecommendsThreads ? 1 : 2, nullptr));
  };
  delegate = create();
  if (!delegate) {  // kernels that this processor doesn't run
    setenv("BINARYVIT_KERNELS", "", 1);
    delegate = create();
  }
  if (valid) Run(bytes, switches);
}

Host::~Host() {
  if (kernel.free) kernel.free(&context, kernel_node.user_data);
  tflite_plugin_destroy_delegate(reinterpret_cast<TfLiteDelegate*>(delegate));
  for (Tensor& tensor : tensors) std::free(tensor.dims);
  for (IntArray* array : {node.inputs, node.outputs, kernel_node.inputs, plan}) std::free(array);
}

// Returns the index that the node has for the tensor.
int Host::AddTensor(Bytes& bytes) {
  const auto storage = static_cast<Storage>(bytes.Choice(kStorages));
  if (storage == kLeftOut) return -1;
  if (storage == kFirstInput && !tensors.empty()) return 0;
  if (storage == kNoTensor) return 1000;
  Tensor tensor = {};
  const int types[] = {kFloat32, kInt32, kInt8, kBool, 4, 0};
  tensor.type = types[bytes.Choice(6)];
  std::vector<int> dims(bytes.Choice(10));
  for (int& size : dims) size = bytes.Take<int32_t>();
  if (bytes.Choice(2)) {
    tensor.quantization.scale = bytes.Take<float>();
    tensor.quantization.zero_point = bytes.Take<int32_t>();
    tensor.quantization_details.type = kAffineQuantization;
  }
  const int64_t more = bytes.Take<int16_t>();
  const size_t offset = bytes.Choice(16);
  const auto content = static_cast<Content>(bytes.Choice(kContents));
  tensor.name = "tensor";
  tensor.dims = NewArray(dims);
  tensor.allocation = storage == kConstant ? kReadOnlyFile : 2;
  tensors.push_back(tensor);
  Tensor& own = tensors.back();
  contents.push_back(content);
  if (storage == kConstant) {  // others are allocated once the operator has prepared
    // Like a file's: its bytes are those of the shape or, with sparsity, any number.
    size_t size = 0;
    if (!BytesOf(own, &size) || size > kMostConstantBytes) size = 64;
    const int64_t actual = static_cast<int64_t>(size) + more;
    own.bytes = actual > 0 ? static_cast<size_t>(actual) : 0;
    own.data = blocks[tensors.size() - 1].Allocate(own.bytes, offset);
    Fill(own.data, own.bytes, content);
  }
  return static_cast<int>(tensors.size()) - 1;
}

void Host::Fill(void* data, size_t size, Content content) {
  auto* to = static_cast<char*>(data);
  for (size_t i = 0; i < size; i += 4) {
    random = random * 1664525 + 1013904223;
    uint32_t word = content == kZeros ? 0 : random;
    const float real = static_cast<float>(random >> 16) / 16384.0f - 2.0f;
    if (content == kReals) std::memcpy(&word, &real, sizeof word);
    std::memcpy(to + i, &word, std::min(size - i, sizeof word));
  }
}

bool Host::Allocate() {
  for (size_t i = 0; i < tensors.size(); ++i) {
    Tensor& tensor = tensors[i];
    if (tensor.allocation == kReadOnlyFile) continue;
    if (!BytesOf(tensor, &tensor.bytes) || tensor.bytes > kMostComputedBytes) return false;
    tensor.data = blocks[i].Allocate(tensor.bytes, 0);
    Fill(tensor.data, tensor.bytes, contents[i]);
  }
  return true;
}

// Whether to prepare it would only take long: maps that neither could run here nor are too large for any operator.
bool Host::IsSlow() const {
  return std::any_of(tensors.begin(), tensors.end(), [](const Tensor& tensor) {
    size_t bytes;
    return BytesOf(tensor, &bytes) && bytes > kSlowBytes && bytes < kHopelessBytes;
  });
}

// Whether the product of what is computed and what is constant, and of all positions of a map with all, is small.
bool Host::IsCheap() const {
  size_t computed = 1, constant = 1;
  for (const Tensor& tensor : tensors) {
    (tensor.allocation == kReadOnlyFile ? constant : computed) += tensor.bytes / 4;
    if (tensor.dims->size != 4) continue;
    const size_t positions = static_cast<size_t>(tensor.dims->data[1]) * static_cast<size_t>(tensor.dims->data[2]);
    if (tensor.allocation != kReadOnlyFile && positions * tensor.bytes / 4 > kMostWork / 4) return false;
  }
  return computed * constant <= kMostWork;
}

bool Host::PrepareAndInvoke(bool twice) {
  if (IsSlow()) return false;
  if (kernel.prepare(&context, &kernel_node) != kOk) {
    if (message.empty()) std::abort();  // whoever refuses gives the reason
    return false;
  }
  outcome = "too large to run";
  if (!Allocate() || !IsCheap()) return true;
  outcome = "ran";
  for (int round = 0; round < (twice ? 2 : 1); ++round) {
    if (kernel.invoke(&context, &kernel_node) != kOk && message.empty()) std::abort();
  }
  return true;
}

void Host::Run(Bytes& bytes, uint8_t switches) {
  if (delegate->Prepare(&context, delegate) != kOk || !kernel.prepare) return;
  if (!PrepareAndInvoke((switches & kRunsTwice) != 0) || !(switches & kResizes)) return;
  Tensor& first = tensors[0];  // what was prepared has one
  if (first.allocation == kReadOnlyFile) return;  // sizes of constants stay
  for (int i = 0; i < first.dims->size; ++i) first.dims->data[i] = bytes.Take<int32_t>();
  first.data = nullptr;
  PrepareAndInvoke(false);
}

}  // namespace

// Returns what the operator said, or how far it came.
std::string RunNode(const uint8_t* data, size_t size) {
  const Host host(Bytes(data, size));
  return host.message.empty() ? host.outcome : host.message;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  RunNode(data, size);
  return 0;
}
