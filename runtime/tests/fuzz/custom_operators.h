// The custom operators that the delegate knows, and one that it doesn't, and how a file has their options.
#ifndef BINARYVIT_FUZZ_CUSTOM_OPERATORS_H_
#define BINARYVIT_FUZZ_CUSTOM_OPERATORS_H_

#include <cstdint>
#include <string>
#include <vector>

namespace binaryvit::fuzz {

struct CustomOperator {
  const char* name;
  std::vector<const char*> options;
};

inline const std::vector<CustomOperator>& CustomOperators() {
  static const std::vector<CustomOperator> operators = {
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

struct OptionValue {
  int32_t value;
  uint8_t type = 1;  // an integer
};

// Options as flexbuffers write them: the keys, the vector of their places, the map, its own place. All numbers take 4 bytes.
inline std::string Flexbuffer(const std::vector<const char*>& names, const std::vector<OptionValue>& values) {
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
  for (const OptionValue& it : values) add(static_cast<uint32_t>(it.value));
  for (const OptionValue& it : values) bytes.push_back(static_cast<char>(it.type << 2 | 2));
  add(bytes.size() - map);
  bytes.push_back(static_cast<char>(9 << 2 | 2));
  bytes.push_back(4);
  return bytes;
}

}  // namespace binaryvit::fuzz

#endif  // BINARYVIT_FUZZ_CUSTOM_OPERATORS_H_
