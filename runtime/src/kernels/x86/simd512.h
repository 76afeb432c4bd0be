// What the two AVX-512 kernel sets have in common. They differ in how bits are counted, and in how exponentials are looked up.
#ifndef BINARYVIT_KERNELS_X86_SIMD512_H_
#define BINARYVIT_KERNELS_X86_SIMD512_H_

#include <immintrin.h>

#include "kernels/generic/make_kernel_set.h"

namespace binaryvit {
namespace {

struct Simd {
  using Float = __m512;
  using Int = __m512i;
  using Mask = __mmask16;
  static constexpr size_t kLanes = 16;
  static constexpr bool kHasMultiplyAdd = true;

  static Float Load(const float* from) { return _mm512_loadu_ps(from); }
  static Int Load(const int32_t* from) { return _mm512_loadu_si512(from); }
  static void Store(float* to, Float x) { _mm512_storeu_ps(to, x); }
  static void Store(int32_t* to, Int x) { _mm512_storeu_si512(to, x); }
  static Float Set(float x) { return _mm512_set1_ps(x); }
  static Int Set(int32_t x) { return _mm512_set1_epi32(x); }
  static Float Add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Int Add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int Subtract(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static Float Multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float MultiplyAdd(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Int Min(Int a, Int b) { return _mm512_min_epi32(a, b); }
  static Int Max(Int a, Int b) { return _mm512_max_epi32(a, b); }
  static Float ToFloat(Int x) { return _mm512_cvtepi32_ps(x); }
  static Mask Less(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static Mask Less(Int a, Int b) { return _mm512_cmplt_epi32_mask(a, b); }
  static Int AddLess(Int count, Int a, Int b) {
    return _mm512_mask_add_epi32(count, Less(a, b), count, _mm512_set1_epi32(1));
  }
  static void Deinterleave(Float a, Float b, Float* even, Float* odd) {
    const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *even = _mm512_permutex2var_ps(a, index, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(index, _mm512_set1_epi32(1)), b);
  }
  static void LoadQuarters(const float* from, Float (&quarters)[4]) { QuartersByHalves<Simd>(from, quarters); }
  static Float LoadFours(const float* from, size_t stride) {
    const auto pair = [&](const float* first) {
      return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(first)), _mm_loadu_ps(first + stride), 1);
    };
    return _mm512_insertf32x8(_mm512_castps256_ps512(pair(from)), pair(from + 2 * stride), 1);
  }
  static Float PreluByMax(Float x, Float slope) { return _mm512_max_ps(_mm512_mul_ps(x, slope), x); }
  static Float Prelu(Float x, Float slope) {
    return _mm512_mask_mul_ps(x, _mm512_movepi32_mask(_mm512_castps_si512(x)), x, slope);
  }
};

struct Isa512 {
  using Simd = binaryvit::Simd;

  template <int vectors>
  static void StoreMasks(const __mmask16 (&masks)[vectors], uint32_t* bits, size_t i) {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE { std::memcpy(reinterpret_cast<char*>(bits) + i / 8 + 2 * v, &masks[v], 2); });
  }

  template <int vectors>
  static void StoreBytes(uint8_t* to, const __m512i (&counts)[vectors]) {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + v * Simd::kLanes), _mm512_cvtepi32_epi8(counts[v]));
    });
  }

  static void PackBytesBelow(const uint8_t* counts, uint8_t limit, size_t blocks, uint32_t* bits) {
    const __m512i limits = _mm512_set1_epi8(static_cast<char>(limit));
    for (; blocks > 0; --blocks, counts += kBytesPerBlock, bits += 2) {
      const uint64_t mask = _mm512_cmplt_epu8_mask(_mm512_load_si512(counts), limits);
      std::memcpy(bits, &mask, sizeof mask);
    }
  }

  // Reduces 16 vectors to one, whose lane i has what `reduce` makes of the lanes of vector i.
  template <typename Reduce>
  static __m512i ReduceEach(__m512i (&vectors)[16], const Reduce& reduce) {
    const auto halves = [&](__m512i a, __m512i b) {
      return reduce(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xEE));
    };
    const auto quarters = [&](__m512i a, __m512i b) {
      return reduce(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
    };
    const auto pairs = [&](__m512i a, __m512i b) {
      return reduce(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    };
    Unroll<4>([&](int i) BINARYVIT_INLINE {
      vectors[i] = quarters(halves(vectors[i], vectors[i + 4]), halves(vectors[i + 8], vectors[i + 12]));
    });
    const __m512 a = _mm512_castsi512_ps(pairs(vectors[0], vectors[1]));
    const __m512 b = _mm512_castsi512_ps(pairs(vectors[2], vectors[3]));
    return reduce(_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)), _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xDD)));
  }

  // The exponentials' low and high bytes of 64 counts less the least one, at most kSize - 1, come from Lookup(index, table).
  template <typename Lookup>
  static void SumBy(const Lookup& lookup, const uint8_t* counts, size_t rows, size_t blocks, const Probabilities& table,
                    uint8_t* least, int32_t* sums) {
    static_assert(Probabilities::kMaxRows == Simd::kLanes);
    const size_t row_of_counts = blocks * kBytesPerBlock;
    const __m512i last = _mm512_set1_epi8(Probabilities::kSize - 1), zero = _mm512_setzero_si512();
    __m512i partial[Simd::kLanes];
    Unroll<Simd::kLanes>([&](int row) BINARYVIT_INLINE { partial[row] = zero; });
    const uint8_t* from = counts;
    for (size_t row = 0; row < rows; ++row, from += row_of_counts) {
      __m512i minimum = _mm512_load_si512(from);
      for (size_t i = kBytesPerBlock; i < row_of_counts; i += kBytesPerBlock) {
        minimum = _mm512_min_epu8(minimum, _mm512_load_si512(from + i));
      }
      partial[row] = minimum;
    }
    __m512i minima = ReduceEach(partial, [](__m512i a, __m512i b) { return _mm512_min_epu8(a, b); });
    minima = _mm512_min_epu8(minima, _mm512_rol_epi32(minima, 16));
    minima = _mm512_min_epu8(minima, _mm512_rol_epi32(minima, 8));  // in each byte of its lane
    _mm_storeu_si128(reinterpret_cast<__m128i*>(least), _mm512_cvtepi32_epi8(minima));
    alignas(kAlignment) int32_t bytes[Simd::kLanes];
    _mm512_store_si512(bytes, minima);

    from = counts;
    for (size_t row = 0; row < rows; ++row, from += row_of_counts) {
      const __m512i minimum = _mm512_set1_epi32(bytes[row]);
      __m512i sum = zero;
      for (size_t i = 0; i < row_of_counts; i += kBytesPerBlock) {
        const __m512i index = _mm512_min_epu8(_mm512_sub_epi8(_mm512_load_si512(from + i), minimum), last);
        const __m512i high = _mm512_sad_epu8(lookup(index, table.high), zero);
        sum = _mm512_add_epi32(sum, _mm512_sad_epu8(lookup(index, table.low), zero));
        sum = _mm512_add_epi32(sum, _mm512_slli_epi32(high, 8));
      }
      partial[row] = sum;
    }
    Simd::Store(sums, ReduceEach(partial, [](__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }));
  }
};

}  // namespace
}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_X86_SIMD512_H_
