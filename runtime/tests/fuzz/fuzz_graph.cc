// A fuzz target for libFuzzer: bytes describe a graph of the builtin operators that the delegate takes and of LceQuantize and
// LceDequantize, so that it takes any. Nodes that the delegate leaves stay with the host.
//
// The bytes:
//
//   u8 kernel set   u8 threads   u8 switches (see Switches)
//   u8 count of tensors, and for each of them u8 constant, and a tensor (see Host::AddTensor)
//   u16 tensors that are outputs of the graph, one per bit
//   u8 count of nodes, and for each of them
//       u8 operator
//       u8 whether it has builtin data, and then i32 for each field
//       u8 count of inputs, and i8 for each; u8 count of outputs, and i8 for each
//   where it is resized: i32 for each dimension of the first tensor, and of inputs with its shape
#include <string>
#include <vector>

#include "host.h"

namespace {

using namespace binaryvit::fuzz;
using namespace binaryvit::litert;

constexpr size_t kMaxTensors = 12, kMaxNodes = 8, kMaxInputs = 6, kMaxOutputs = 2;

struct Operator {
  int builtin_code;
  const char* name;  // of a custom operator
  size_t fields;     // of its builtin data
};

constexpr Operator kOperators[] = {
    {kBuiltinAdd, nullptr, 1},    {kBuiltinMul, nullptr, 1},    {kBuiltinAddN, nullptr, 0},
    {kBuiltinPrelu, nullptr, 0},  {kBuiltinTile, nullptr, 0},   {kBuiltinConv2d, nullptr, 4},
    {kBuiltinDepthwiseConv2d, nullptr, 5},                      {kBuiltinFullyConnected, nullptr, 3},
    {kBuiltinCustom, "LceQuantize", 0},                         {kBuiltinCustom, "LceDequantize", 0},
};

std::string BuiltinData(Bytes& bytes, const Operator& op) {
  std::string data;
  for (size_t i = 0; i < op.fields; ++i) {
    auto value = bytes.Take<int32_t>();
    // LiteRT's parser gives a bool.
    if (op.builtin_code == kBuiltinFullyConnected && i == 2) value &= 1;
    data.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  return data;
}

std::vector<int> Indices(Bytes& bytes, size_t most) {
  std::vector<int> indices(bytes.Choice(most + 1));
  for (int& index : indices) index = bytes.Take<int8_t>();
  return indices;
}

}  // namespace

// Returns what the delegate said, or how far it came.
std::string RunBytes(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  Host host{Settings(bytes)};
  const size_t tensors = bytes.Choice(kMaxTensors + 1);
  for (size_t i = 0; i < tensors; ++i) {
    const bool is_constant = bytes.Choice(2) != 0;
    host.AddTensor(bytes, is_constant, kGraphContents);
  }
  const auto outputs = bytes.Take<uint16_t>();
  for (int i = 0; i < 16; ++i) {
    if (outputs >> i & 1) host.AddOutput(i);
  }
  const size_t nodes = bytes.Choice(kMaxNodes + 1);
  for (size_t i = 0; i < nodes; ++i) {
    const Operator& op = kOperators[bytes.Choice(std::size(kOperators))];
    const bool has_data = bytes.Choice(2) != 0;
    const std::string builtin_data = has_data ? BuiltinData(bytes, op) : "";
    const std::vector<int> inputs = Indices(bytes, kMaxInputs);
    host.AddNode(op.builtin_code, op.name, inputs, Indices(bytes, kMaxOutputs), "", has_data ? &builtin_data : nullptr);
  }
  host.Run(bytes);
  return host.Outcome();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  RunBytes(data, size);
  return 0;
}
