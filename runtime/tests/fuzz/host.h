// What the fuzz targets share: bytes to read choices from, a host of the delegate, and the oracle. The host is as small as
// the delegate's interface, and trusts a graph as little as LiteRT does without its verifier, or less: shapes, indices and
// data may be anything, and a node may read what it gives. The oracle runs each graph once more, with the scalar kernels on
// one thread: every bit must be the same.
#ifndef BINARYVIT_FUZZ_HOST_H_
#define BINARYVIT_FUZZ_HOST_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "host/litert_abi.h"

namespace binaryvit::fuzz {

enum Switches : uint8_t { kResizes = 1, kProfiles = 2, kRecommendsThreads = 4, kRunsTwice = 8, kKeepsOrder = 16 };

// Data of tensors. Nodes alone have the first three kinds; graphs also two values, filters, and the multiples of a TILE.
enum Content : uint8_t { kReals, kBits, kZeros, kPair, kEights, kMultiples, kFours, kAxes };
constexpr size_t kNodeContents = 3, kGraphContents = 8;

// Little-endian, zeros after the last.
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

// Memory of just this size, so that the address sanitizer sees each byte that is read beyond.
class Block {
 public:
  void* Allocate(size_t bytes, size_t offset = 0) {
    memory_.reset(new char[bytes + offset]);
    return memory_.get() + offset;
  }

 private:
  std::unique_ptr<char[]> memory_;
};

// How a graph is run: u8 kernel set, u8 threads, u8 switches. The oracle takes the switches alone.
struct Settings {
  Settings(Bytes& bytes, bool is_oracle);

  const char* kernels;
  int threads;
  uint8_t switches;
  bool embeds;  // whether these kernels run patch embeddings and heads, as the oracle's do
};

// What became of a graph: what the delegate said, or how far it came, and the values of all tensors after each inference.
struct Result {
  std::string outcome, values;
};

class Host {
 public:
  explicit Host(const Settings& settings) : settings_(settings) {}
  ~Host();
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  // Adds a tensor, and returns its index:
  //
  //   u8 type, u8 rank, i32 for each dimension, u8 quantized, and then f32 scale and i32 zero point
  //   i16 bytes more than the shape needs, u8 distance of the data from an aligned address, u8 content (of so many kinds)
  int AddTensor(Bytes& bytes, bool is_constant, size_t contents);

  // Adds a node; a builtin one has no name. Without `builtin_data` it is null.
  void AddNode(int builtin_code, const char* name, const std::vector<int>& inputs, const std::vector<int>& outputs,
               const std::string& custom_options, const std::string* builtin_data);

  void AddOutput(int tensor) { outputs_.push_back(tensor); }
  size_t tensor_count() const { return tensors_.size(); }

  // Hands the graph to the delegate, prepares and runs it; where it is resized: i32 for each dimension of the first tensor,
  // and of inputs with its shape.
  void Run(Bytes& bytes);

  Result TakeResult() { return {message_.empty() ? outcome_ : message_, std::move(values_)}; }

 private:
  struct OwnNode {
    litert::Node node = {};
    litert::Registration registration = {};
    bool is_kernel = false;
    Block custom_options, builtin_data;
  };
  struct OwnTensor {
    std::vector<int> file_dims;
    Content content;
    bool is_given;  // by a node of the file
    Block data;
  };

  static litert::Status GetExecutionPlan(litert::Context*, litert::IntArray** plan);
  static litert::Status GetNodeAndRegistration(litert::Context*, int index, litert::Node**, litert::Registration**);
  static litert::Status ReplaceNodes(litert::Context*, litert::Registration, const litert::IntArray* nodes,
                                     litert::Delegate*);
  static litert::Status ResizeTensor(litert::Context*, litert::Tensor*, litert::IntArray* shape);
  static void ReportError(litert::Context*, const char* format, ...);

  void Load();
  litert::Tensor* Computed(int index);
  void Fill(litert::Tensor* tensor, Content content);
  bool Prepare();
  bool Allocate();
  void Invoke();
  void RecordValues();
  bool PrepareAndInvoke(bool twice);
  bool IsSlow() const;
  bool IsCheap() const;

  Settings settings_;
  litert::Context context_ = {};
  litert::Delegate* delegate_ = nullptr;
  std::vector<litert::Tensor> tensors_;
  std::vector<OwnTensor> own_;   // the same tensors
  std::deque<OwnNode> nodes_;    // those of the file, then kernels
  litert::IntArray* plan_ = nullptr;
  std::vector<int> outputs_;
  std::string message_, values_;
  const char* outcome_ = "not prepared";  // where there is no message
  uint32_t random_ = 1;
};

// Of each target: runs the graph that the bytes describe.
Result RunGraph(Bytes bytes, bool is_oracle);

// The same with the oracle, and the outcome. Aborts where the results differ.
std::string RunBytes(const uint8_t* data, size_t size);

}  // namespace binaryvit::fuzz

#endif  // BINARYVIT_FUZZ_HOST_H_
