// What the two ARM64 kernel sets have in common: a lane is a unit, 32 bits of it at a time. They differ in how the bits
// counted in each byte become a sum: Sum has the functions First, Add and Total, for at most kMaxWords words.
#ifndef BINARYVIT_KERNELS_ARM_TILE_H_
#define BINARYVIT_KERNELS_ARM_TILE_H_

#include <arm_neon.h>

#include "kernels/generic/make_kernel_set.h"

namespace binaryvit {
namespace {

constexpr size_t kLanes = 4;

struct Simd {
  using Float = float32x4_t;
  using Int = int32x4_t;
  using Mask = uint32x4_t;
  static constexpr size_t kLanes = binaryvit::kLanes;
  static constexpr bool kHasMultiplyAdd = true;

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
  static Float MultiplyAdd(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Int Min(Int a, Int b) { return vminq_s32(a, b); }
  static Int Max(Int a, Int b) { return vmaxq_s32(a, b); }
  static Float ToFloat(Int x) { return vcvtq_f32_s32(x); }
  static Mask Less(Float a, Float b) { return vcltq_f32(a, b); }
  static Mask Less(Int a, Int b) { return vcltq_s32(a, b); }
  static Int AddLess(Int count, Int a, Int b) { return vsubq_s32(count, vreinterpretq_s32_u32(Less(a, b))); }
  static void Deinterleave(Float a, Float b, Float* even, Float* odd) { *even = vuzp1q_f32(a, b), *odd = vuzp2q_f32(a, b); }
  static void LoadQuarters(const float* from, Float (&quarters)[4]) {
    const float32x4x4_t loaded = vld4q_f32(from);
    for (int i = 0; i < 4; ++i) quarters[i] = loaded.val[i];
  }
  static Float LoadFours(const float* from, size_t) { return Load(from); }
  static Float PreluByMax(Float x, Float slope) { return vmaxq_f32(vmulq_f32(x, slope), x); }
  static Float Prelu(Float x, Float slope) { return vbslq_f32(vcltzq_f32(x), vmulq_f32(x, slope), x); }
  static Int PushLess(Int bits, Float x, Float limit) {
    return vsriq_n_s32(vreinterpretq_s32_u32(vcltq_f32(x, limit)), bits, 1);
  }
};

template <typename Sum>
struct ArmTile {
  static constexpr size_t kUnits = 16, kWordGroup = 1, kHiddenUnits = 8;
  static constexpr int kRows = 4, kBlocks = 1;
  static constexpr size_t kInterleavedSize = kLanes;  // a load that fills a vector takes time from the arithmetic
  static constexpr bool kPushesSigns = true, kUnrollsWords = false;

  static void StoreInterleaved(uint32_t* to, uint32_t word) { vst1q_u32(to, vdupq_n_u32(word)); }

  template <int rows, int vectors, int constant_words, bool interleaved>
  static inline BINARYVIT_INLINE void Count(const uint32_t* activations, size_t stride, const uint32_t* weights,
                                            size_t words, int32x4_t (&counts)[rows][vectors]) {
    if (!interleaved && __builtin_expect(words > Sum::kMaxWords, false)) {
      CountLong<rows, vectors>(activations, stride, weights, words, &counts[0][0]);
      return;
    }
    typename Sum::Part parts[rows][vectors];
    constexpr size_t units = vectors * kLanes;
    if constexpr (interleaved) {
      if (constant_words > 0) {
        words = constant_words;
        asm volatile("" : "+r"(activations));  // or the compiler would keep them in more registers than there are
      }
      AddInterleaved<vectors, true>(activations, weights, parts);
      for (size_t pair = 1; pair < words / 2; ++pair) {
        activations += 2 * rows * kLanes, weights += 2 * units;
        AddInterleaved<vectors, false>(activations, weights, parts);
      }
    } else if (words == 1) {
      AddWords<rows, vectors, 1, true>(activations, stride, weights, parts);
    } else {
      AddWords<rows, vectors, 2, true>(activations, stride, weights, parts);
      for (size_t left = words / 2 - 1; left > 0; --left) {
        activations += 2, weights += 2 * units;
        AddWords<rows, vectors, 2, false>(activations, stride, weights, parts);
      }
      if (words % 2 != 0) {
        AddWords<rows, vectors, 1, false>(activations + 2, stride, weights + 2 * units, parts);
      }
    }
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE { counts[r][v] = Sum::Total(parts[r][v]); });
    });
  }

 private:
  // Rows whose parts would overflow.
  template <int rows, int vectors>
  static __attribute__((noinline)) void CountLong(const uint32_t* activations, size_t stride, const uint32_t* weights,
                                                  size_t words, int32x4_t* counts) {
    for (int i = 0; i < rows * vectors; ++i) counts[i] = vdupq_n_s32(0);
    while (words > 0) {
      const size_t step = words < Sum::kMaxWords ? words : Sum::kMaxWords;
      int32x4_t more[rows][vectors];
      Count<rows, vectors, 0, false>(activations, stride, weights, step, more);
      for (int i = 0; i < rows * vectors; ++i) counts[i] = vaddq_s32(counts[i], more[i / vectors][i % vectors]);
      activations += step, weights += step * vectors * kLanes, words -= step;
    }
  }

  // Two words of each of four rows.
  template <int vectors, bool first>
  static inline BINARYVIT_INLINE void AddInterleaved(const uint32_t* activations, const uint32_t* weights,
                                                     typename Sum::Part (&parts)[kRows][vectors]) {
    uint32x4_t weight[2][vectors];
    Unroll<2>([&](int w) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE { weight[w][v] = vld1q_u32(weights + (w * vectors + v) * kLanes); });
    });
    Unroll<kRows>([&](int r) BINARYVIT_INLINE {
      Unroll<2>([&](int w) BINARYVIT_INLINE {
        const uint32x4_t bits = vld1q_u32(activations + (w * kRows + r) * kLanes);
        Unroll<vectors>([&](int v) BINARYVIT_INLINE {
          const uint8x16_t count = vcntq_u8(vreinterpretq_u8_u32(veorq_u32(bits, weight[w][v])));
          parts[r][v] = first && w == 0 ? Sum::First(count) : Sum::Add(parts[r][v], count);
        });
      });
    });
  }

  template <int rows, int vectors, int words, bool first>
  static inline BINARYVIT_INLINE void AddWords(const uint32_t* activations, size_t stride, const uint32_t* weights,
                                               typename Sum::Part (&parts)[rows][vectors]) {
    uint32x4_t weight[words][vectors];
    Unroll<words>([&](int w) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE { weight[w][v] = vld1q_u32(weights + (w * vectors + v) * kLanes); });
    });
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      uint32x4_t bits[words];
      if constexpr (words == 2) {
        const uint32x4x2_t both = vld2q_dup_u32(activations + r * stride);
        bits[0] = both.val[0], bits[1] = both.val[1];
      } else {
        bits[0] = vld1q_dup_u32(activations + r * stride);
      }
      Unroll<words>([&](int w) BINARYVIT_INLINE {
        Unroll<vectors>([&](int v) BINARYVIT_INLINE {
          const uint8x16_t count = vcntq_u8(vreinterpretq_u8_u32(veorq_u32(bits[w], weight[w][v])));
          parts[r][v] = first && w == 0 ? Sum::First(count) : Sum::Add(parts[r][v], count);
        });
      });
    });
  }
};

// A bit of each of 16 bytes, from masks of 16 values: value 4 * k + i is in byte 4 * i + k, because transposing takes less time
// than unzipping. Adding neighboring bytes, and then neighboring halves of words twice, makes two bytes of them.
inline BINARYVIT_INLINE uint8x16_t BitsOfMasks(uint32x4_t a, uint32x4_t b, uint32x4_t c, uint32x4_t d) {
  const uint32x4_t bit_of_byte = {0x10011001, 0x20022002, 0x40044004, 0x80088008};
  const uint16x8_t even = vtrn1q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(c));
  const uint16x8_t odd = vtrn1q_u16(vreinterpretq_u16_u32(b), vreinterpretq_u16_u32(d));
  const uint8x16_t bytes = vtrn1q_u8(vreinterpretq_u8_u16(even), vreinterpretq_u8_u16(odd));
  return vandq_u8(bytes, vreinterpretq_u8_u32(bit_of_byte));
}

template <typename Sum>
struct ArmIsa {
  using Simd = binaryvit::Simd;
  using Tile = ArmTile<Sum>;

  template <int vectors>
  static inline BINARYVIT_INLINE void StoreMasks(const uint32x4_t (&masks)[vectors], uint32_t* bits, size_t i) {
    static_assert(vectors == 4 || vectors == 8, "two bytes or four");
    const uint8x16_t low = BitsOfMasks(masks[0], masks[1], masks[2], masks[3]);
    uint8x16_t high = low;
    if constexpr (vectors == 8) high = BitsOfMasks(masks[4], masks[5], masks[6], masks[7]);
    uint16x8_t sum = vreinterpretq_u16_u8(vpaddq_u8(low, high));
    sum = vpaddq_u16(sum, sum);
    sum = vpaddq_u16(sum, sum);
    if constexpr (vectors == 8) {
      vst1q_lane_u32(bits + i / kBitsPerWord, vreinterpretq_u32_u16(sum), 0);
    } else {
      const uint16_t half = vgetq_lane_u16(sum, 0);
      std::memcpy(reinterpret_cast<char*>(bits) + i / 8, &half, sizeof half);
    }
  }

  static inline BINARYVIT_INLINE void StoreBytes(uint8_t* to, const int32x4_t (&counts)[4]) {
    const auto low_halves = [](int32x4_t a, int32x4_t b) {
      return vuzp1q_u16(vreinterpretq_u16_s32(a), vreinterpretq_u16_s32(b));
    };
    const uint16x8_t low = low_halves(counts[0], counts[1]), high = low_halves(counts[2], counts[3]);
    vst1q_u8(to, vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high)));
  }

  static void PackBytesBelow(const uint8_t* counts, uint8_t limit, size_t blocks, uint32_t* bits) {
    const uint8x16_t limits = vdupq_n_u8(limit), one_bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    for (; blocks > 0; --blocks, counts += kBytesPerBlock, bits += 2) {
      const uint8x16x4_t bytes = vld1q_u8_x4(counts);
      const auto bits_of = [&](int i) { return vandq_u8(vcltq_u8(bytes.val[i], limits), one_bit); };
      uint8x16_t sum = vpaddq_u8(vpaddq_u8(bits_of(0), bits_of(1)), vpaddq_u8(bits_of(2), bits_of(3)));
      sum = vpaddq_u8(sum, sum);
      vst1_u32(bits, vget_low_u32(vreinterpretq_u32_u8(sum)));
    }
  }

  static void SumExponentials(const uint8_t* counts, size_t rows, size_t blocks, const Probabilities& table, uint8_t* least,
                              int32_t* sums) {
    for (size_t row = 0; row < rows; ++row, counts += blocks * kBytesPerBlock) {
      const auto smaller = [](const uint8x16x4_t& four) {
        return vminq_u8(vminq_u8(four.val[0], four.val[1]), vminq_u8(four.val[2], four.val[3]));
      };
      uint8x16_t minimum = smaller(vld1q_u8_x4(counts));
      for (size_t block = 1; block < blocks; ++block) {
        minimum = vminq_u8(minimum, smaller(vld1q_u8_x4(counts + block * kBytesPerBlock)));
      }
      least[row] = vminvq_u8(minimum);
      minimum = vdupq_n_u8(least[row]);
      // TBL gives 0 for an index beyond the table, as do the table's last entries.
      const uint8x16x4_t low = vld1q_u8_x4(table.low), high = vld1q_u8_x4(table.high);
      uint32x4_t low_sum = vdupq_n_u32(0), high_sum = vdupq_n_u32(0);
      for (size_t block = 0; block < blocks; ++block) {
        const uint8x16x4_t bytes = vld1q_u8_x4(counts + block * kBytesPerBlock);
        uint16x8_t low_pairs = vdupq_n_u16(0), high_pairs = vdupq_n_u16(0);
        Unroll<4>([&](int i) BINARYVIT_INLINE {
          const uint8x16_t index = vsubq_u8(bytes.val[i], minimum);
          low_pairs = vpadalq_u8(low_pairs, vqtbl4q_u8(low, index));
          high_pairs = vpadalq_u8(high_pairs, vqtbl4q_u8(high, index));
        });
        low_sum = vpadalq_u16(low_sum, low_pairs);
        high_sum = vpadalq_u16(high_sum, high_pairs);
      }
      sums[row] = static_cast<int32_t>(vaddvq_u32(low_sum) + 256 * vaddvq_u32(high_sum));
    }
  }
};

}  // namespace
}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_ARM_TILE_H_
