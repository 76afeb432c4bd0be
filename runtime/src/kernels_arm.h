// What the two ARM64 kernel sets have in common: a lane is a unit, 32 bits of it at a time. They differ in how the bits
// counted in each byte become a sum: Sum has the constant kWordsBeforeOverflow and the functions First, Add and Total.
#ifndef BINARYVIT_KERNELS_ARM_H_
#define BINARYVIT_KERNELS_ARM_H_

#include <arm_neon.h>

#include "kernel_loop.h"

namespace binaryvit {
namespace {

constexpr size_t kLanes = 4;

// An output gives a Column for the units of a vector, which stores the counts of row after row.
struct CountOutput {
  struct Column {
    void Store(int32_t* to, uint32x4_t count) const { vst1q_s32(to, vreinterpretq_s32_u32(count)); }
  };

  Target<int32_t> target;

  Column At(size_t) const { return {}; }
};

template <bool clamped>
struct FloatOutput {
  struct Column {
    float32x4_t multiplier, bias;
    int32x4_t clamp_min, clamp_max;

    void Store(float* to, uint32x4_t count) const {
      int32x4_t x = vreinterpretq_s32_u32(count);
      if constexpr (clamped) x = vmaxq_s32(vminq_s32(vshlq_n_s32(x, 1), clamp_max), clamp_min);
      vst1q_f32(to, vaddq_f32(vmulq_f32(vcvtq_f32_s32(x), multiplier), bias));
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
    Unroll<rows>([&](int r) BINARYVIT_INLINE { activation[r] = activations + r * stride; });
    if (words <= Sum::kWordsBeforeOverflow) {
      typename Sum::Part parts[rows][kVectors];
      CountWords<rows>(activation, weights, words, parts);
      StoreTile<rows, kVectors, kLanes>(output, row, unit,
                                        [&](int r, int v) BINARYVIT_INLINE { return Sum::Total(parts[r][v]); });
      return;
    }
    uint32x4_t counts[rows][kVectors];
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<kVectors>([&](int v) BINARYVIT_INLINE { counts[r][v] = vdupq_n_u32(0); });
    });
    while (words > 0) {
      const size_t step = words < Sum::kWordsBeforeOverflow ? words : Sum::kWordsBeforeOverflow;
      typename Sum::Part parts[rows][kVectors];
      CountWords<rows>(activation, weights, step, parts);
      weights += step * kUnits;
      words -= step;
      Unroll<rows>([&](int r) BINARYVIT_INLINE {
        Unroll<kVectors>([&](int v) BINARYVIT_INLINE {
          counts[r][v] = vaddq_u32(counts[r][v], Sum::Total(parts[r][v]));
        });
      });
    }
    StoreTile<rows, kVectors, kLanes>(output, row, unit,
                                      [&](int r, int v) BINARYVIT_INLINE { return counts[r][v]; });
  }

 private:
  // Counts `words` words, one or more, and moves `activation` behind them.
  template <int rows>
  static inline BINARYVIT_INLINE void CountWords(const uint32_t* (&activation)[rows], const uint32_t* weights,
                                                 size_t words, typename Sum::Part (&parts)[rows][kVectors]) {
    const uint32_t* end = weights + words * kUnits;
    ForWord<rows>(activation, weights, [&](int r, int v, uint8x16_t count) BINARYVIT_INLINE {
      parts[r][v] = Sum::First(count);
    });
    while ((weights += kUnits) != end) {
      ForWord<rows>(activation, weights, [&](int r, int v, uint8x16_t count) BINARYVIT_INLINE {
        parts[r][v] = Sum::Add(parts[r][v], count);
      });
    }
  }

  template <int rows, typename Body>
  static inline BINARYVIT_INLINE void ForWord(const uint32_t* (&activation)[rows], const uint32_t* weights,
                                              const Body& body) {
    uint32x4_t weight[kVectors];
    Unroll<kVectors>([&](int v) BINARYVIT_INLINE { weight[v] = vld1q_u32(weights + v * kLanes); });
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      const uint32x4_t bits = vld1q_dup_u32(activation[r]++);
      Unroll<kVectors>([&](int v) BINARYVIT_INLINE {
        body(r, v, vcntq_u8(vreinterpretq_u8_u32(veorq_u32(bits, weight[v]))));
      });
    });
  }
};

// A bit of each of 16 bytes that tell whether values are below zero.
uint8x16_t SignBits(const float* values) {
  const uint8x16_t one_bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
  uint16x8_t below[2];
  for (int half = 0; half < 2; ++half) {
    const uint32x4_t low = vcltzq_f32(vld1q_f32(values + 8 * half));
    const uint32x4_t high = vcltzq_f32(vld1q_f32(values + 8 * half + 4));
    below[half] = vuzp1q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
  }
  return vandq_u8(vuzp1q_u8(vreinterpretq_u8_u16(below[0]), vreinterpretq_u8_u16(below[1])), one_bit);
}

// Adding neighbouring bytes three times makes a byte of each eight. Four words share the additions.
void PackSigns(const float* values, size_t words, uint32_t* bits) {
  for (; words >= 4; words -= 4, bits += 4) {
    uint8x16_t sums[4];
    for (int word = 0; word < 4; ++word, values += kBitsPerWord) {
      sums[word] = vpaddq_u8(SignBits(values), SignBits(values + 16));
    }
    const uint8x16_t all = vpaddq_u8(vpaddq_u8(sums[0], sums[1]), vpaddq_u8(sums[2], sums[3]));
    vst1q_u32(bits, vreinterpretq_u32_u8(all));
  }
  for (; words > 0; --words, ++bits, values += kBitsPerWord) {
    uint8x16_t sum = vpaddq_u8(SignBits(values), SignBits(values + 16));
    sum = vpaddq_u8(sum, sum);
    sum = vpaddq_u8(sum, sum);
    *bits = vgetq_lane_u32(vreinterpretq_u32_u8(sum), 0);
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
