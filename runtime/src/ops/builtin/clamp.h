// Clamp: the activation that TFLite fuses into a builtin operator.
#ifndef BINARYVIT_OPS_BUILTIN_CLAMP_H_
#define BINARYVIT_OPS_BUILTIN_CLAMP_H_

#include <cmath>

#include "host/litert_abi.h"

namespace binaryvit {

struct Clamp {
  float low = -__builtin_huge_valf();
  float high = __builtin_huge_valf();

  // False for an activation that is no clamp.
  bool Read(int activation) {
    if (activation < litert::kNoActivation || activation > litert::kRelu6) return false;
    *this = {};
    if (activation == litert::kRelu || activation == litert::kRelu6) low = 0;
    if (activation == litert::kRelu6) high = 6;
    if (activation == litert::kReluN1To1) low = -1, high = 1;
    return true;
  }

  // As in LiteRT, a NaN stays a NaN.
  void Apply(float* values, size_t count) const {
    const float least = low, most = high;  // nothing that is stored can change them
    if (std::isinf(least)) return;
    for (size_t i = 0; i < count; ++i) {
      const float x = values[i] < least ? least : values[i];
      values[i] = x > most ? most : x;
    }
  }
};

}  // namespace binaryvit

#endif  // BINARYVIT_OPS_BUILTIN_CLAMP_H_
