// A fuzz target for libFuzzer: bytes describe a graph of the operators that the delegate takes, builtin, LCE's and fused
// ones. Nodes that the delegate leaves stay with the host.
//
// The bytes:
//
//   u8 kernel set   u8 threads   u8 switches (see Switches)
//   u8 count of tensors, and for each of them u8 constant, and a tensor (see Host::AddTensor)
//   u16 tensors that are outputs of the graph, one per bit
//   u8 count of nodes, and for each of them
//       u8 operator
//       u8 whether it has builtin data or options, and then i32 for each field or option
//       u8 count of inputs, and i8 for each; u8 count of outputs, and i8 for each
//   where it is resized: i32 for each dimension of the first tensor, and of inputs with its shape
#include <string>
#include <vector>

#include "custom_operators.h"
#include "host.h"

namespace binaryvit {
namespace {

using namespace fuzz;
using namespace litert;

constexpr size_t kMaxTensors = 16, kMaxNodes = 8, kMaxInputs = 6, kMaxOutputs = 2;

struct BuiltinOperator {
  int code;
  size_t fields;  // of its builtin data
};

constexpr BuiltinOperator kBuiltinOperators[] = {
    {kBuiltinAdd, 1},    {kBuiltinMul, 1},             {kBuiltinAddN, 0},           {kBuiltinPrelu, 0}, {kBuiltinTile, 0},
    {kBuiltinConv2d, 6}, {kBuiltinDepthwiseConv2d, 5}, {kBuiltinFullyConnected, 3}, {kBuiltinMean, 1},
};

std::string BuiltinData(Bytes& bytes, const BuiltinOperator& op, bool embeds) {
  std::string data;
  for (size_t i = 0; i < op.fields; ++i) {
    auto value = bytes.Take<int32_t>();
    // LiteRT's parser gives a bool.
    if ((op.code == kBuiltinFullyConnected && i == 2) || op.code == kBuiltinMean) value &= 1;
    // Of no patch embedding, and of no head.
    if (op.code == kBuiltinConv2d && i == 0 && !embeds) value = kPaddingSame;
    if (op.code == kBuiltinFullyConnected && i == 1 && !embeds) value = 1;
    data.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  return data;
}

std::string Options(Bytes& bytes, const CustomOperator& op) {
  std::vector<OptionValue> values;
  for (size_t i = 0; i < op.options.size(); ++i) values.push_back({bytes.Take<int32_t>()});
  return Flexbuffer(op.options, values);
}

std::vector<int> Indices(Bytes& bytes, size_t most) {
  std::vector<int> indices(bytes.Choice(most + 1));
  for (int& index : indices) index = bytes.Take<int8_t>();
  return indices;
}

}  // namespace

Result fuzz::RunGraph(Bytes bytes, bool is_oracle) {
  const Settings settings(bytes, is_oracle);
  Host host{settings};
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
    const size_t builtin = std::size(kBuiltinOperators), choice = bytes.Choice(builtin + CustomOperators().size());
    const bool has_data = bytes.Choice(2) != 0;
    if (choice < builtin) {
      const BuiltinOperator& op = kBuiltinOperators[choice];
      const std::string data = has_data ? BuiltinData(bytes, op, settings.embeds) : "";
      const std::vector<int> inputs = Indices(bytes, kMaxInputs);
      host.AddNode(op.code, nullptr, inputs, Indices(bytes, kMaxOutputs), "", has_data ? &data : nullptr);
    } else {
      const CustomOperator& op = CustomOperators()[choice - builtin];
      const std::string options = has_data ? Options(bytes, op) : "";
      const std::vector<int> inputs = Indices(bytes, kMaxInputs);
      host.AddNode(kBuiltinCustom, op.name, inputs, Indices(bytes, kMaxOutputs), options, nullptr);
    }
  }
  host.Run(bytes);
  return host.TakeResult();
}

}  // namespace binaryvit
