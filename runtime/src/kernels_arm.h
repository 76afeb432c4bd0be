// What the two ARM64 kernel sets have in common: a lane is a unit, 32 bits of it at a time. They differ in how the bits
// counted in each byte become a sum: Sum has the constant kWordsBeforeOverflow and the functions Add and Total.
#ifndef BINARYVIT_KERNELS_ARM_H_
#define BINARYVIT_KERNELS_ARM_H_

#include <arm_neon.h>

#include <cstring>

#include "kernel_loop.h"

namespace binaryvit {
namespace {

constexpr size_t kLanes = 4;

struct CountOutput {
  int32_t* data;
  size_t stride;
  size_t units;

  void Store(size_t row, size_t unit, int32x4_t count) const {
    if (unit + kLanes <= units) {
      vst1q_s32(data + row * stride + unit, count);
    } else if (unit < units) {
      int32_t all[kLanes];
      vst1q_s32(all, count);
      std::memcpy(data + row * stride + unit, all, (units - unit) * sizeof(int32_t));
    }
  }
};

template <bool clamped>
struct FloatOutput {
  const Affine& affine;
  float* data;
  size_t stride;
  size_t units;

  void Store(size_t row, size_t unit, int32x4_t count) const {
    if constexpr (clamped) {
      count = vminq_s32(vshlq_n_s32(count, 1), vdupq_n_s32(affine.clamp_max));
      count = vmaxq_s32(count, vdupq_n_s32(affine.clamp_min));
    }
    const float32x4_t scaled = vmulq_f32(vcvtq_f32_s32(count), vld1q_f32(affine.multiplier + unit));
    const float32x4_t result = vaddq_f32(scaled, vld1q_f32(affine.bias + unit));
    if (unit + kLanes <= units) {
      vst1q_f32(data + row * stride + unit, result);
    } else if (unit < units) {
      float all[kLanes];
      vst1q_f32(all, result);
      std::memcpy(data + row * stride + unit, all, (units - unit) * sizeof(float));
    }
  }
};

template <typename Sum>
struct ArmTile {
  static constexpr size_t kUnits = 16, kWordGroup = 1, kRows = 4, kBlocks = 1;
  static constexpr int kVectors = kUnits / kLanes;

  template <int rows, int blocks, typename Output>
  static void Run(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words,
                  const Output& output, size_t row, size_t unit) {
    static_assert(blocks == 1, "two blocks need more registers than there are");
    const uint32_t* activation[rows];
    for (int r = 0; r < rows; ++r) activation[r] = activations + r * stride;
    uint32x4_t counts[rows][kVectors];
    for (size_t first = 0; first < words; first += Sum::kWordsBeforeOverflow) {
      typename Sum::Part parts[rows][kVectors] = {};
      const size_t left = words - first;
      for (size_t word = left < Sum::kWordsBeforeOverflow ? left : Sum::kWordsBeforeOverflow; word > 0; --word) {
        uint32x4_t weight[kVectors];
        for (int v = 0; v < kVectors; ++v) weight[v] = vld1q_u32(weights + v * kLanes);
        weights += kUnits;
        for (int r = 0; r < rows; ++r) {
          const uint32x4_t bits = vld1q_dup_u32(activation[r]++);
          for (int v = 0; v < kVectors; ++v) {
            const uint8x16_t differing = vcntq_u8(vreinterpretq_u8_u32(veorq_u32(bits, weight[v])));
            parts[r][v] = Sum::Add(parts[r][v], differing);
          }
        }
      }
      for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < kVectors; ++v) {
          const uint32x4_t total = Sum::Total(parts[r][v]);
          counts[r][v] = first == 0 ? total : vaddq_u32(counts[r][v], total);
        }
      }
    }
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        output.Store(row + r, unit + v * kLanes, vreinterpretq_s32_u32(counts[r][v]));
      }
    }
  }
};

// Narrows the comparisons of 32 values to a byte each, keeps one bit of each byte, and adds neighbours up.
void PackSigns(const float* values, size_t words, uint32_t* bits) {
  const uint8x16_t one_bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
  for (size_t word = 0; word < words; ++word, values += kBitsPerWord) {
    uint8x16_t bytes[2];
    for (int half = 0; half < 2; ++half) {
      uint32x4_t below[4];
      for (int v = 0; v < 4; ++v) below[v] = vcltzq_f32(vld1q_f32(values + 16 * half + 4 * v));
      const uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(below[0]), vreinterpretq_u16_u32(below[1]));
      const uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(below[2]), vreinterpretq_u16_u32(below[3]));
      bytes[half] = vandq_u8(vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high)), one_bit);
    }
    uint8x16_t sum = vpaddq_u8(bytes[0], bytes[1]);
    sum = vpaddq_u8(sum, sum);
    sum = vpaddq_u8(sum, sum);
    bits[word] = vgetq_lane_u32(vreinterpretq_u32_u8(sum), 0);
  }
}

template <typename Sum>
struct ArmIsa {
  using Tile = ArmTile<Sum>;
  using CountOutput = binaryvit::CountOutput;
  template <bool clamped>
  using FloatOutput = binaryvit::FloatOutput<clamped>;
  static constexpr auto PackSigns = binaryvit::PackSigns;
};

}  // namespace
}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_ARM_H_
