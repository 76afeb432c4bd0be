// What the two ARM64 kernel sets have in common: a lane is a unit, 32 bits of it at a time. They differ in how the bits
// counted in each byte become a sum: Sum has the constant kWordsBeforeOverflow and the functions First, Add and Total.
#ifndef BINARYVIT_KERNELS_ARM_H_
#define BINARYVIT_KERNELS_ARM_H_

#include <arm_neon.h>

#include "kernel_loop.h"

#define BINARYVIT_INLINE inline __attribute__((always_inline))

namespace binaryvit {
namespace {

constexpr size_t kLanes = 4;

// An output gives a Column for the units of a vector, which stores the counts of row after row.
struct CountOutput {
  struct Column {
    void Store(int32_t* target, uint32x4_t count) const { vst1q_s32(target, vreinterpretq_s32_u32(count)); }
  };

  Target<int32_t> target;

  Column At(size_t) const { return {}; }
};

template <bool clamped>
struct FloatOutput {
  struct Column {
    float32x4_t multiplier, bias;
    int32x4_t clamp_min, clamp_max;

    void Store(float* target, uint32x4_t count) const {
      int32x4_t x = vreinterpretq_s32_u32(count);
      if constexpr (clamped) x = vmaxq_s32(vminq_s32(vshlq_n_s32(x, 1), clamp_max), clamp_min);
      vst1q_f32(target, vaddq_f32(vmulq_f32(vcvtq_f32_s32(x), multiplier), bias));
    }
  };

  Target<float> target;
  const Affine& affine;

  Column At(size_t unit) const {
    return {vld1q_f32(affine.multiplier + unit), vld1q_f32(affine.bias + unit), vdupq_n_s32(affine.clamp_min),
            vdupq_n_s32(affine.clamp_max)};
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
    if (words <= Sum::kWordsBeforeOverflow) {
      typename Sum::Part parts[rows][kVectors];
      CountWords<rows>(activation, weights, words, parts);
      Store<rows>(output, row, unit, [&](int r, int v) { return Sum::Total(parts[r][v]); });
      return;
    }
    uint32x4_t counts[rows][kVectors] = {};
    while (words > 0) {
      const size_t step = words < Sum::kWordsBeforeOverflow ? words : Sum::kWordsBeforeOverflow;
      typename Sum::Part parts[rows][kVectors];
      CountWords<rows>(activation, weights, step, parts);
      weights += step * kUnits;
      words -= step;
      for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < kVectors; ++v) counts[r][v] = vaddq_u32(counts[r][v], Sum::Total(parts[r][v]));
      }
    }
    Store<rows>(output, row, unit, [&](int r, int v) { return counts[r][v]; });
  }

 private:
  // Counts `words` words, one or more, and moves `activation` behind them.
  template <int rows>
  BINARYVIT_INLINE static void CountWords(const uint32_t* (&activation)[rows], const uint32_t* weights, size_t words,
                                          typename Sum::Part (&parts)[rows][kVectors]) {
    const uint32_t* end = weights + words * kUnits;
    ForWord<rows>(activation, weights, [&](int r, int v, uint8x16_t count) { parts[r][v] = Sum::First(count); });
    while ((weights += kUnits) != end) {
      ForWord<rows>(activation, weights,
                    [&](int r, int v, uint8x16_t count) { parts[r][v] = Sum::Add(parts[r][v], count); });
    }
  }

  template <int rows, typename Body>
  BINARYVIT_INLINE static void ForWord(const uint32_t* (&activation)[rows], const uint32_t* weights, const Body& body) {
    uint32x4_t weight[kVectors];
    for (int v = 0; v < kVectors; ++v) weight[v] = vld1q_u32(weights + v * kLanes);
    for (int r = 0; r < rows; ++r) {
      const uint32x4_t bits = vld1q_dup_u32(activation[r]++);
      for (int v = 0; v < kVectors; ++v) body(r, v, vcntq_u8(vreinterpretq_u8_u32(veorq_u32(bits, weight[v]))));
    }
  }

  template <int rows, typename Output, typename Counts>
  BINARYVIT_INLINE static void Store(const Output& output, size_t row, size_t unit, const Counts& counts) {
    auto* data = output.target.At(row, unit);
    const size_t stride = output.target.stride;
    for (int v = 0; v < kVectors; ++v) {
      const auto column = output.At(unit + v * kLanes);
      for (int r = 0; r < rows; ++r) column.Store(data + r * stride + v * kLanes, counts(r, v));
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
