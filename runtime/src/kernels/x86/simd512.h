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

  // The exponentials' low and high bytes of 64 counts less the least one, at most kSize - 1, come from Lookup(index, table).
  template <typename Lookup>
  static uint64_t SumBy(const Lookup& lookup, const uint8_t* counts, size_t blocks, const Probabilities& table,
                        uint8_t* least) {
    __m512i minimum = _mm512_set1_epi8(-1);
    for (size_t block = 0; block < blocks; ++block) {
      minimum = _mm512_min_epu8(minimum, _mm512_load_si512(counts + block * kBytesPerBlock));
    }
    const __m256i half = _mm256_min_epu8(_mm512_castsi512_si256(minimum), _mm512_extracti64x4_epi64(minimum, 1));
    __m128i bytes = _mm_min_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    bytes = _mm_minpos_epu16(_mm_min_epu8(bytes, _mm_srli_epi16(bytes, 8)));
    *least = static_cast<uint8_t>(_mm_cvtsi128_si32(bytes));
    const __m512i last = _mm512_set1_epi8(Probabilities::kSize - 1), zero = _mm512_setzero_si512();
    minimum = _mm512_broadcastb_epi8(bytes);
    __m512i low_sum = zero, high_sum = zero;
    for (; blocks > 0; --blocks, counts += kBytesPerBlock) {
      const __m512i index = _mm512_min_epu8(_mm512_sub_epi8(_mm512_load_si512(counts), minimum), last);
      low_sum = _mm512_add_epi64(low_sum, _mm512_sad_epu8(lookup(index, table.low), zero));
      high_sum = _mm512_add_epi64(high_sum, _mm512_sad_epu8(lookup(index, table.high), zero));
    }
    const __m512i sum = _mm512_add_epi64(low_sum, _mm512_slli_epi64(high_sum, 8));
    return static_cast<uint64_t>(_mm512_reduce_add_epi64(sum));
  }
};

}  // namespace
}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_X86_SIMD512_H_
