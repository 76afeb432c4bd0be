// The reference: what every other kernel set is tested against.
#include "kernels.h"

namespace binaryvit {
namespace {

int32_t Count(const uint32_t* row, const uint32_t* weights, size_t words) {
  int32_t count = 0;
  for (size_t word = 0; word < words; ++word) count += __builtin_popcount(row[word] ^ weights[word]);
  return count;
}

void CountAll(const Rows& rows, const Weights& weights, int32_t* output, size_t stride) {
  for (size_t row = 0; row < rows.count; ++row) {
    for (size_t unit = 0; unit < weights.units; ++unit) {
      const uint32_t* packed = weights.data + unit * weights.words;
      output[row * stride + unit] = Count(rows.data + row * rows.stride, packed, weights.words);
    }
  }
}

void Multiply(const Rows& rows, const Weights& weights, const Affine& affine, float* output, size_t stride) {
  for (size_t row = 0; row < rows.count; ++row) {
    for (size_t unit = 0; unit < weights.units; ++unit) {
      const uint32_t* packed = weights.data + unit * weights.words;
      int32_t x = Count(rows.data + row * rows.stride, packed, weights.words);
      if (affine.clamped) {
        x *= 2;
        if (x > affine.clamp_max) x = affine.clamp_max;
        if (x < affine.clamp_min) x = affine.clamp_min;
      }
      output[row * stride + unit] = static_cast<float>(x) * affine.multiplier[unit] + affine.bias[unit];
    }
  }
}

void PackSigns(const float* values, size_t words, uint32_t* bits) {
  for (size_t word = 0; word < words; ++word) {
    uint32_t packed = 0;
    for (size_t bit = 0; bit < kBitsPerWord; ++bit) {
      packed |= static_cast<uint32_t>(values[word * kBitsPerWord + bit] < 0) << bit;
    }
    bits[word] = packed;
  }
}

}  // namespace

const KernelSet kScalarKernels = {"scalar", 1, 1, Multiply, CountAll, PackSigns};

}  // namespace binaryvit
