#include "host.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <map>
#include <set>

#include "binaryvit_runtime.h"

namespace binaryvit::fuzz {
namespace {

using namespace litert;

// A host's own memory would be used up, or the time, where these don't hold.
constexpr size_t kMaxConstantBytes = size_t{1} << 20, kMaxComputedBytes = size_t{1} << 18;
constexpr size_t kMaxWork = size_t{1} << 23;
constexpr size_t kSlowBytes = size_t{1} << 22, kHopelessBytes = size_t{1} << 33;

constexpr int kArena = 2;  // kTfLiteArenaRw

IntArray* NewArray(const std::vector<int>& values) {
  auto* array = static_cast<IntArray*>(std::malloc(sizeof(int) * (values.size() + 1)));
  array->size = static_cast<int>(values.size());
  std::copy(values.begin(), values.end(), array->data);
  return array;
}

std::vector<int> Values(const IntArray* array) { return {array->data, array->data + array->size}; }

bool Contains(const IntArray* array, int value) {
  return std::find(array->data, array->data + array->size, value) != array->data + array->size;
}

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

// Nodes that run one after the other, the listed ones or others, and the tensors that go in and out.
struct Subset {
  bool is_listed = false;
  std::vector<int> nodes;
  std::set<int> inputs, outputs;
};

}  // namespace

Settings::Settings(Bytes& bytes, bool is_oracle) {
  const char* const sets[] = {"", "sse", "avx2", "avx512bw"};  // "": the best, such as avx512
  kernels = sets[bytes.Choice(std::size(sets))];
  const uint8_t choice = bytes.Choice(8);
  threads = choice < 6 ? 1 : choice - 4;
  switches = bytes.Take<uint8_t>();
#if defined(__x86_64__)
  embeds = std::strcmp(kernels, "sse") != 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  embeds = true;
#endif
  if (is_oracle) kernels = "scalar", threads = 1;
}

Host::~Host() {
  for (OwnNode& it : nodes_) {
    if (it.is_kernel) it.registration.free(&context_, it.node.user_data);
    std::free(it.node.inputs);
    std::free(it.node.outputs);
  }
  tflite_plugin_destroy_delegate(reinterpret_cast<TfLiteDelegate*>(delegate_));
  for (Tensor& tensor : tensors_) std::free(tensor.dims);
  std::free(plan_);
}

int Host::AddTensor(Bytes& bytes, bool is_constant, size_t contents) {
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
  OwnTensor own = {dims, static_cast<Content>(bytes.Choice(contents)), false, {}};
  tensor.name = "tensor";
  tensor.dims = NewArray(dims);
  tensor.allocation = is_constant ? kReadOnlyFile : kArena;
  if (is_constant) {
    // Like a file's: its bytes are those of the shape or, with sparsity, any number.
    size_t size = 0;
    if (!BytesOf(tensor, &size) || size > kMaxConstantBytes) size = 64;
    const int64_t actual = static_cast<int64_t>(size) + more;
    tensor.bytes = actual > 0 ? static_cast<size_t>(actual) : 0;
    tensor.data = own.data.Allocate(tensor.bytes, offset);
    Fill(&tensor, own.content);
  } else if (!BytesOf(tensor, &tensor.bytes)) {
    tensor.bytes = 0;
  }
  tensors_.push_back(tensor);
  own_.push_back(std::move(own));
  return static_cast<int>(tensors_.size()) - 1;
}

void Host::AddNode(int builtin_code, const char* name, const std::vector<int>& inputs, const std::vector<int>& outputs,
                   const std::string& custom_options, const std::string* builtin_data) {
  nodes_.emplace_back();
  OwnNode& it = nodes_.back();
  it.node.inputs = NewArray(inputs);
  it.node.outputs = NewArray(outputs);
  const size_t size = custom_options.size();
  it.node.custom_options = std::memcpy(it.custom_options.Allocate(size), custom_options.data(), size);
  it.node.custom_options_size = static_cast<int>(size);
  if (builtin_data) {
    it.node.builtin_data =
        std::memcpy(it.builtin_data.Allocate(builtin_data->size()), builtin_data->data(), builtin_data->size());
  }
  it.registration.builtin_code = builtin_code;
  it.registration.custom_name = name;
}

Status Host::GetExecutionPlan(Context* context, IntArray** plan) {
  *plan = static_cast<Host*>(context->impl)->plan_;
  return kOk;
}

Status Host::GetNodeAndRegistration(Context* context, int index, Node** node, Registration** registration) {
  Host& host = *static_cast<Host*>(context->impl);
  if (index < 0 || static_cast<size_t>(index) >= host.nodes_.size()) std::abort();  // there is no such node
  *node = &host.nodes_[static_cast<size_t>(index)].node;
  *registration = &host.nodes_[static_cast<size_t>(index)].registration;
  return kOk;
}

// LiteRT's way to split a graph: nodes of one sort, listed or not, go into a subset once all that they read has been
// computed, and each subset of listed ones becomes a kernel. So nodes run as one though others stand between them in the
// plan, if nothing has to run between them. In hosts that keep the order, a subset ends at the first node that can't join.
// Of a tensor that two nodes give, the last one's subset counts, and nodes of a cycle never run.
Status Host::ReplaceNodes(Context* context, Registration registration, const IntArray* listed, Delegate* delegate) {
  constexpr int kNotYet = -1;
  Host& host = *static_cast<Host*>(context->impl);
  const auto node_at = [&](int index) -> Node& { return host.nodes_[static_cast<size_t>(index)].node; };
  std::vector<int> left = Values(host.plan_);
  std::map<int, int> giver;  // the subset that gives a tensor
  for (const int index : left) {
    for (const int tensor : Values(node_at(index).outputs)) giver[tensor] = kNotYet;
  }
  // In LiteRT a node that alone gives what it reads is part of such a cycle; here it runs.
  const auto is_ready = [&](const Node& node) {
    const std::vector<int> inputs = Values(node.inputs);
    return std::all_of(inputs.begin(), inputs.end(), [&](int tensor) {
      const auto found = giver.find(tensor);
      return found == giver.end() || found->second != kNotYet || Contains(node.outputs, tensor);
    });
  };

  std::vector<Subset> subsets;
  while (true) {
    Subset subset;
    const int place = static_cast<int>(subsets.size());
    const auto add = [&](int index) {
      for (const int tensor : Values(node_at(index).outputs)) giver[tensor] = place;
      for (const int tensor : Values(node_at(index).inputs)) {
        const auto found = giver.find(tensor);
        if (tensor < 0 || (found != giver.end() && found->second == place)) continue;
        subset.inputs.insert(tensor);
        if (found != giver.end()) subsets[static_cast<size_t>(found->second)].outputs.insert(tensor);
      }
      subset.nodes.push_back(index);
    };
    for (bool goes_on = true; goes_on;) {
      goes_on = false;
      for (size_t i = 0; i < left.size();) {
        const bool is_listed = Contains(listed, left[i]);
        if (is_ready(node_at(left[i])) && (subset.nodes.empty() || subset.is_listed == is_listed)) {
          subset.is_listed = is_listed;
          add(left[i]);
          left.erase(left.begin() + static_cast<std::ptrdiff_t>(i));
          goes_on = true;
        } else if ((host.settings_.switches & kKeepsOrder) && !subset.nodes.empty()) {
          goes_on = false;
          break;
        } else {
          ++i;
        }
      }
    }
    if (subset.nodes.empty()) break;
    subsets.push_back(std::move(subset));
  }
  for (const int tensor : host.outputs_) {
    const auto found = giver.find(tensor);
    if (found != giver.end() && found->second != kNotYet) {
      subsets[static_cast<size_t>(found->second)].outputs.insert(tensor);
    }
  }

  std::vector<int> plan;
  for (const Subset& subset : subsets) {
    if (!subset.is_listed) {
      plan.insert(plan.end(), subset.nodes.begin(), subset.nodes.end());
      continue;
    }
    plan.push_back(static_cast<int>(host.nodes_.size()));
    host.AddNode(kBuiltinCustom, registration.custom_name, {subset.inputs.begin(), subset.inputs.end()},
                 {subset.outputs.begin(), subset.outputs.end()}, "", nullptr);
    OwnNode& kernel = host.nodes_.back();
    kernel.is_kernel = true;
    kernel.registration = registration;
    kernel.node.delegate = delegate;
    DelegateParams params = {delegate, NewArray(subset.nodes), kernel.node.inputs, kernel.node.outputs};
    kernel.node.user_data = registration.init(context, reinterpret_cast<const char*>(&params), 0);
    std::free(params.nodes_to_replace);
  }
  std::free(host.plan_);
  host.plan_ = NewArray(plan);
  return kOk;
}

Status Host::ResizeTensor(Context* context, Tensor* tensor, IntArray* shape) {
  for (int i = 0; i < shape->size; ++i) {
    if (shape->data[i] < 0) std::abort();  // no operator may ask for it
  }
  if (tensor->allocation == kReadOnlyFile) {
    context->ReportError(context, "the size of a constant stays");
    std::free(shape);
    return kError;
  }
  std::free(tensor->dims);
  tensor->dims = shape;
  tensor->data = nullptr;
  if (BytesOf(*tensor, &tensor->bytes)) return kOk;
  context->ReportError(context, "a tensor is too large");
  return kError;
}

void Host::ReportError(Context* context, const char* format, ...) {
  char text[1000];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  static_cast<Host*>(context->impl)->message_ = text;
}

void Host::Load() {
  std::vector<int> plan;
  for (const OwnNode& it : nodes_) {
    plan.push_back(static_cast<int>(plan.size()));
    for (const int tensor : Values(it.node.outputs)) {
      if (Computed(tensor)) own_[static_cast<size_t>(tensor)].is_given = true;
    }
  }
  plan_ = NewArray(plan);
  context_.tensors = tensors_.data();
  context_.tensors_size = tensors_.size();
  context_.impl = this;
  context_.GetExecutionPlan = GetExecutionPlan;
  context_.ResizeTensor = ResizeTensor;
  context_.ReportError = ReportError;
  context_.GetNodeAndRegistration = GetNodeAndRegistration;
  context_.ReplaceNodeSubsetsWithDelegateKernels = ReplaceNodes;
  context_.GetExternalContext = [](Context* context, int) { return context->impl; };
  const bool recommends = (settings_.switches & kRecommendsThreads) != 0;
  context_.recommended_num_threads = recommends ? settings_.threads : -1;

  const std::string threads = std::to_string(settings_.threads);
  const char* const keys[] = {"profile", "num_threads"};
  const char* const values[] = {settings_.switches & kProfiles ? "1" : "0", threads.c_str()};
  for (const char* kernels : {settings_.kernels, ""}) {  // the best where this processor doesn't run those
    setenv("BINARYVIT_KERNELS", kernels, 1);
    delegate_ = reinterpret_cast<Delegate*>(tflite_plugin_create_delegate(keys, values, recommends ? 1 : 2, nullptr));
    if (delegate_) return;
  }
  std::abort();
}

// A tensor that isn't a constant, or null.
Tensor* Host::Computed(int index) {
  if (index < 0 || static_cast<size_t>(index) >= tensors_.size()) return nullptr;
  Tensor& tensor = tensors_[static_cast<size_t>(index)];
  return tensor.allocation == kReadOnlyFile ? nullptr : &tensor;
}

void Host::Fill(Tensor* tensor, Content content) {
  auto* to = static_cast<char*>(tensor->data);
  for (size_t i = 0; i < tensor->bytes; i += 4) {
    random_ = random_ * 1664525 + 1013904223;
    uint32_t word = content == kZeros ? 0 : random_;
    float real = static_cast<float>(random_ >> 16) / 16384.0f - 2.0f;
    if (content == kPair) real = real < 0 ? -1.0f : 1.0f;
    // Of 64 channels each unit sees the next eight, or the next four.
    if (content == kEights && (i / 256 ^ i / 32) % 8 != 0) real = 0;
    if (content == kFours && (i / 256 ^ i / 16) % 16 != 0) real = 0;
    if (content != kBits && content != kZeros) std::memcpy(&word, &real, sizeof word);
    if (content == kMultiples) word = i + 8 > tensor->bytes ? 8 : 1;
    if (content == kAxes) word = i / 4 % 2 + 1;
    std::memcpy(to + i, &word, std::min(tensor->bytes - i, sizeof word));
  }
}

// Kernels prepare in the plan's order; nodes that the host keeps have outputs as the file says.
bool Host::Prepare() {
  for (const int index : Values(plan_)) {
    OwnNode& it = nodes_[static_cast<size_t>(index)];
    if (it.is_kernel) {
      if (IsSlow()) return false;
      if (it.registration.prepare(&context_, &it.node) == kOk) continue;
      if (message_.empty()) std::abort();  // whoever refuses gives the reason
      return false;
    }
    for (const int output : Values(it.node.outputs)) {
      Tensor* tensor = Computed(output);
      if (!tensor) continue;
      std::free(tensor->dims);
      tensor->dims = NewArray(own_[static_cast<size_t>(output)].file_dims);
      if (!BytesOf(*tensor, &tensor->bytes)) return false;
    }
  }
  return true;
}

// There is memory for what kernels and the host's nodes read and give, and for the graph's inputs and outputs.
bool Host::Allocate() {
  std::set<int> needed(outputs_.begin(), outputs_.end());
  for (const int index : Values(plan_)) {
    const Node& node = nodes_[static_cast<size_t>(index)].node;
    for (const int tensor : Values(node.inputs)) needed.insert(tensor);
    for (const int tensor : Values(node.outputs)) needed.insert(tensor);
  }
  for (size_t i = 0; i < tensors_.size(); ++i) {
    Tensor* tensor = Computed(static_cast<int>(i));
    if (!tensor) continue;
    tensor->data = nullptr;
    if (own_[i].is_given && needed.count(static_cast<int>(i)) == 0) continue;
    if (!BytesOf(*tensor, &tensor->bytes) || tensor->bytes > kMaxComputedBytes) return false;
    tensor->data = own_[i].data.Allocate(tensor->bytes);
    Fill(tensor, own_[i].content);
  }
  return true;
}

void Host::Invoke() {
  for (const int index : Values(plan_)) {
    OwnNode& it = nodes_[static_cast<size_t>(index)];
    if (it.is_kernel) {
      if (it.registration.invoke(&context_, &it.node) == kOk) continue;
      if (message_.empty()) std::abort();
      return;
    }
    for (const int output : Values(it.node.outputs)) {
      if (Tensor* tensor = Computed(output)) Fill(tensor, own_[static_cast<size_t>(output)].content);
    }
  }
}

// Whether to prepare it would only take long: maps that neither could run here nor are too large for any operator.
bool Host::IsSlow() const {
  return std::any_of(tensors_.begin(), tensors_.end(), [](const Tensor& tensor) {
    size_t bytes;
    return BytesOf(tensor, &bytes) && bytes > kSlowBytes && bytes < kHopelessBytes;
  });
}

// Whether the product of what is computed and what is constant, and of all positions of a map with all, is small.
bool Host::IsCheap() const {
  size_t computed = 1, constant = 1;
  for (const Tensor& tensor : tensors_) {
    (tensor.allocation == kReadOnlyFile ? constant : computed) += tensor.bytes / 4;
    if (tensor.dims->size != 4) continue;
    const size_t positions = static_cast<size_t>(tensor.dims->data[1]) * static_cast<size_t>(tensor.dims->data[2]);
    if (tensor.allocation != kReadOnlyFile && positions * tensor.bytes / 4 > kMaxWork / 4) return false;
  }
  return computed * constant <= kMaxWork;
}

// The bits of a NaN depend on the order of two summands.
void Host::RecordValues() {
  for (const Tensor& tensor : tensors_) {
    if (tensor.allocation == kReadOnlyFile || !tensor.data) continue;
    const size_t first = values_.size();
    values_.append(static_cast<const char*>(tensor.data), tensor.bytes);
    if (tensor.type != kFloat32) continue;
    for (size_t i = first; i < values_.size(); i += sizeof(float)) {
      float value;
      std::memcpy(&value, &values_[i], sizeof value);
      if (std::isnan(value)) std::memset(&values_[i], UINT8_MAX, sizeof value);
    }
  }
}

bool Host::PrepareAndInvoke(bool twice) {
  if (!Prepare()) return false;
  outcome_ = "too large to run";
  if (!Allocate() || !IsCheap()) return true;
  outcome_ = "ran";
  for (int round = 0; round < (twice ? 2 : 1); ++round) {
    Invoke();
    RecordValues();
  }
  return true;
}

void Host::Run(Bytes& bytes) {
  Load();
  if (delegate_->Prepare(&context_, delegate_) != kOk) std::abort();  // what it can't take, it leaves to the host
  if (std::none_of(nodes_.begin(), nodes_.end(), [](const OwnNode& it) { return it.is_kernel; })) return;
  const bool prepared = PrepareAndInvoke((settings_.switches & kRunsTwice) != 0);
  if (settings_.switches & kProfiles) {
    std::vector<BinaryVitProfileEntry> entries(2);
    binaryvit_profile(reinterpret_cast<TfLiteDelegate*>(delegate_), entries.data(), entries.size());
  }
  if (!prepared || !(settings_.switches & kResizes) || !Computed(0)) return;
  std::vector<int> shape(own_[0].file_dims.size());
  for (int& size : shape) size = bytes.Take<int32_t>();
  for (size_t i = tensors_.size(); i-- > 0;) {
    Tensor* tensor = Computed(static_cast<int>(i));
    if (!tensor || own_[i].is_given || own_[i].file_dims != own_[0].file_dims) continue;
    std::free(tensor->dims);
    tensor->dims = NewArray(shape);
    if (!BytesOf(*tensor, &tensor->bytes)) return;
    tensor->data = nullptr;
  }
  PrepareAndInvoke(false);
}

std::string RunBytes(const uint8_t* data, size_t size) {
  const Result result = RunGraph({data, size}, false), oracle = RunGraph({data, size}, true);
  // Kernel sets and threads need more memory or less.
  const auto lacks_memory = [](const Result& it) { return it.outcome.find("needs more memory") != std::string::npos; };
  if (lacks_memory(result) || lacks_memory(oracle)) return result.outcome;
  if (result.outcome == oracle.outcome && result.values == oracle.values) return result.outcome;
  const auto differing = std::mismatch(result.values.begin(), result.values.end(), oracle.values.begin(),
                                       oracle.values.end());
  std::fprintf(stderr, "The scalar kernels compute something else, from byte %td of %zu on: \"%s\", scalar \"%s\"\n",
               differing.first - result.values.begin(), result.values.size(), result.outcome.c_str(),
               oracle.outcome.c_str());
  std::abort();
}

}  // namespace binaryvit::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  binaryvit::fuzz::RunBytes(data, size);
  return 0;
}
