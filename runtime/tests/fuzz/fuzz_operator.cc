// A fuzz target for libFuzzer: bytes describe one custom node of a model, which goes the way that a host takes it: through
// the delegate to the operator's Prepare, the allocation of its tensors and Invoke.
//
// The bytes:
//
//   u8 operator   u8 kernel set   u8 threads   u8 switches (see Switches)
//   u8 options    0: u8 count, and for each of them i32 value, u8 type; their names are the operator's
//                 1: u8 count, and that many bytes of a flexbuffer
//   u8 count of inputs, and for each of them and the output
//       u8 storage, and where it isn't left out or one of the inputs a tensor (see Host::AddTensor)
//   where it is resized: i32 for each dimension of the first tensor
#include <string>
#include <utility>
#include <vector>

#include "host.h"

namespace {

using namespace binaryvit::fuzz;

enum Storage : uint8_t { kComputed, kConstant, kLeftOut, kFirstInput, kNoTensor, kStorages };

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

// Returns the index that the node has for the tensor.
int AddTensor(Host& host, Bytes& bytes) {
  const auto storage = static_cast<Storage>(bytes.Choice(kStorages));
  if (storage == kLeftOut) return -1;
  if (storage == kFirstInput && host.tensor_count() > 0) return 0;
  if (storage == kNoTensor) return 1000;
  return host.AddTensor(bytes, storage == kConstant, kNodeContents);
}

}  // namespace

// Returns what the operator said, or how far it came.
std::string RunBytes(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const Operator& op = Operators()[bytes.Choice(Operators().size())];
  Host host{Settings(bytes)};

  std::string options;
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

  std::vector<int> inputs(bytes.Choice(9));
  for (int& input : inputs) input = AddTensor(host, bytes);
  const int output = AddTensor(host, bytes);
  host.AddNode(binaryvit::litert::kBuiltinCustom, op.name, inputs, {output}, options, nullptr);
  host.AddOutput(output);
  host.Run(bytes);
  return host.Outcome();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  RunBytes(data, size);
  return 0;
}
