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
#include <vector>

#include "custom_operators.h"
#include "host.h"

namespace binaryvit {
namespace {

using namespace fuzz;

enum Storage : uint8_t { kComputed, kConstant, kLeftOut, kFirstInput, kNoTensor, kStorages };

// Returns the index that the node has for the tensor.
int AddTensor(Host& host, Bytes& bytes) {
  const auto storage = static_cast<Storage>(bytes.Choice(kStorages));
  if (storage == kLeftOut) return -1;
  if (storage == kFirstInput && host.tensor_count() > 0) return 0;
  if (storage == kNoTensor) return 1000;
  return host.AddTensor(bytes, storage == kConstant, kNodeContents);
}

}  // namespace

Result fuzz::RunGraph(Bytes bytes, bool is_oracle) {
  const CustomOperator& op = CustomOperators()[bytes.Choice(CustomOperators().size())];
  Host host{Settings(bytes, is_oracle)};

  std::string options;
  if (bytes.Choice(2) == 0) {
    std::vector<OptionValue> values(bytes.Choice(12));
    for (OptionValue& it : values) {
      it.value = bytes.Take<int32_t>();
      it.type = bytes.Choice(64);
    }
    options = Flexbuffer(op.options, values);
  } else {
    options.resize(bytes.Take<uint8_t>());
    for (char& byte : options) byte = bytes.Take<char>();
  }

  std::vector<int> inputs(bytes.Choice(9));
  for (int& input : inputs) input = AddTensor(host, bytes);
  const int output = AddTensor(host, bytes);
  host.AddNode(litert::kBuiltinCustom, op.name, inputs, {output}, options, nullptr);
  host.AddOutput(output);
  host.Run(bytes);
  return host.TakeResult();
}

}  // namespace binaryvit
