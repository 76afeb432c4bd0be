// Window: the positions of a convolution or pooling window along one axis of a map.
#ifndef BINARYVIT_OPS_LCE_WINDOW_H_
#define BINARYVIT_OPS_LCE_WINDOW_H_

#include <cstdint>

namespace binaryvit {

enum Padding : int { kSame = 0, kValid = 1 };  // as TFLite's schema numbers them

struct Window {
  int input;     // length of the map
  int size;      // taps
  int stride;
  int dilation;
  int64_t output;  // positions
  int64_t before;  // padding before the map

  // False if the window fits nowhere.
  bool Place(Padding padding) {
    const int64_t extent = static_cast<int64_t>(size - 1) * dilation + 1;
    if (padding == kSame) {
      output = (static_cast<int64_t>(input) + stride - 1) / stride;
      const int64_t missing = (output - 1) * stride + extent - input;
      before = missing > 0 ? missing / 2 : 0;
    } else {
      output = extent <= input ? (input - extent) / stride + 1 : 0;
      before = 0;
    }
    return output > 0;
  }

  // The element of the map under a tap. Outside of [0, input) it is padding.
  int64_t At(int64_t position, int tap) const {
    return position * stride + static_cast<int64_t>(tap) * dilation - before;
  }
};

}  // namespace binaryvit

#endif  // BINARYVIT_OPS_LCE_WINDOW_H_
