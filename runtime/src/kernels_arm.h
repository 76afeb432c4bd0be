// What the two ARM64 kernel sets have in common: a lane is a unit, 32 bits of it at a time. They differ in how the bits
// counted in each byte become a sum: Sum has the constant kWordsBeforeOverflow and the functions First, Add and Total.
#ifndef BINARYVIT_KERNELS_ARM_H_
#define BINARYVIT_KERNELS_ARM_H_

#include <arm_neon.h>

#include "kernel_loop.h"

namespace binaryvit {
namespace {

constexpr size_t kLanes = 4;

struct Simd {
  using Float = float32x4_t;
  using Int = int32x4_t;
  static constexpr size_t kLanes = binaryvit::kLanes;

  static Float Load(const float* from) { return vld1q_f32(from); }
  static Int Load(const int32_t* from) { return vld1q_s32(from); }
  static void Store(float* to, Float x) { vst1q_f32(to, x); }
  static void Store(int32_t* to, Int x) { vst1q_s32(to, x); }
  static Float Set(float x) { return vdupq_n_f32(x); }
  static Int Set(int32_t x) { return vdupq_n_s32(x); }
  static Float Add(Float a, Float b) { return vaddq_f32(a, b); }
  static Int Add(Int a, Int b) { return vaddq_s32(a, b); }
  static Int Subtract(Int a, Int b) { return vsubq_s32(a, b); }
  static Float Multiply(Float a, Float b) { return vmulq_f32(a, b); }
  static Int Min(Int a, Int b) { return vminq_s32(a, b); }
  static Int Max(Int a, Int b) { return vmaxq_s32(a, b); }
  static Float ToFloat(Int x) { return vcvtq_f32_s32(x); }
  static Float Prelu(Float x, Float slope) { return vbslq_f32(vcltzq_f32(x), vmulq_f32(x, slope), x); }
  static Int PushSign(Int bits, Float x) { return vsriq_n_s32(vreinterpretq_s32_f32(x), bits, 1); }
};

template <typename Sum>
struct ArmTile {
  static constexpr size_t kUnits = 16, kWordGroup = 1, kHiddenUnits = 8;
  static constexpr int kRows = 4, kBlocks = 1, kHiddenRows = 4;

  template <int rows, int vectors>
  static inline BINARYVIT_INLINE void Count(const uint32_t* activations, size_t stride, const uint32_t* weights,
                                            size_t words, int32x4_t (&counts)[rows][vectors]) {
    const uint32_t* activation[rows];
    Unroll<rows>([&](int r) BINARYVIT_INLINE { activation[r] = activations + r * stride; });
    if (words <= Sum::kWordsBeforeOverflow) {
      typename Sum::Part parts[rows][vectors];
      CountWords<rows, vectors>(activation, weights, words, parts);
      Unroll<rows>([&](int r) BINARYVIT_INLINE {
        Unroll<vectors>([&](int v) BINARYVIT_INLINE { counts[r][v] = vreinterpretq_s32_u32(Sum::Total(parts[r][v])); });
      });
      return;
    }
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE { counts[r][v] = vdupq_n_s32(0); });
    });
    while (words > 0) {
      const size_t step = words < Sum::kWordsBeforeOverflow ? words : Sum::kWordsBeforeOverflow;
      typename Sum::Part parts[rows][vectors];
      CountWords<rows, vectors>(activation, weights, step, parts);
      weights += step * vectors * kLanes;
      words -= step;
      Unroll<rows>([&](int r) BINARYVIT_INLINE {
        Unroll<vectors>([&](int v) BINARYVIT_INLINE {
          counts[r][v] = vaddq_s32(counts[r][v], vreinterpretq_s32_u32(Sum::Total(parts[r][v])));
        });
      });
    }
  }

 private:
  // Counts `words` words, one or more, and moves `activation` behind them.
  template <int rows, int vectors>
  static inline BINARYVIT_INLINE void CountWords(const uint32_t* (&activation)[rows], const uint32_t* weights,
                                                 size_t words, typename Sum::Part (&parts)[rows][vectors]) {
    constexpr size_t units = vectors * kLanes;
    const uint32_t* end = weights + words * units;
    ForWord<rows, vectors>(activation, weights, [&](int r, int v, uint8x16_t count) BINARYVIT_INLINE {
      parts[r][v] = Sum::First(count);
    });
    while ((weights += units) != end) {
      ForWord<rows, vectors>(activation, weights, [&](int r, int v, uint8x16_t count) BINARYVIT_INLINE {
        parts[r][v] = Sum::Add(parts[r][v], count);
      });
    }
  }

  template <int rows, int vectors, typename Body>
  static inline BINARYVIT_INLINE void ForWord(const uint32_t* (&activation)[rows], const uint32_t* weights,
                                              const Body& body) {
    uint32x4_t weight[vectors];
    Unroll<vectors>([&](int v) BINARYVIT_INLINE { weight[v] = vld1q_u32(weights + v * kLanes); });
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      const uint32x4_t bits = vld1q_dup_u32(activation[r]++);
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
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
  using Simd = binaryvit::Simd;
  using Tile = ArmTile<Sum>;
  static constexpr auto PackSigns = binaryvit::PackSigns;
};

}  // namespace
}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_ARM_H_
