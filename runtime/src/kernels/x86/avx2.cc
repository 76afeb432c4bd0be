// AVX2 counts bits by half-bytes.
#include <immintrin.h>

#include "kernels/generic/make_kernel_set.h"
#include "kernels/x86/half_bytes.h"

namespace binaryvit {
namespace {

struct Simd {
  using Float = __m256;
  using Int = __m256i;
  using Mask = __m256;  // its top bits
  static constexpr size_t kLanes = 8;
  static constexpr bool kHasMultiplyAdd = true;

  static Float Load(const float* from) { return _mm256_loadu_ps(from); }
  static Int Load(const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static void Store(float* to, Float x) { _mm256_storeu_ps(to, x); }
  static void Store(int32_t* to, Int x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }
  static Float Set(float x) { return _mm256_set1_ps(x); }
  static Int Set(int32_t x) { return _mm256_set1_epi32(x); }
  static Float Add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Int Add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int Subtract(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static Float Multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float MultiplyAdd(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Int Min(Int a, Int b) { return _mm256_min_epi32(a, b); }
  static Int Max(Int a, Int b) { return _mm256_max_epi32(a, b); }
  static Float ToFloat(Int x) { return _mm256_cvtepi32_ps(x); }
  static Mask Less(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static Mask Less(Int a, Int b) { return _mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a)); }
  static Int AddLess(Int count, Int a, Int b) { return _mm256_sub_epi32(count, _mm256_cmpgt_epi32(b, a)); }
  static void Deinterleave(Float a, Float b, Float* even, Float* odd) {
    const auto in_order = [](__m256 x) {  // the shuffles work on half vectors
      return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), _MM_SHUFFLE(3, 1, 2, 0)));
    };
    *even = in_order(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)));
    *odd = in_order(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
  }
  static void LoadQuarters(const float* from, Float (&quarters)[4]) { QuartersByHalves<Simd>(from, quarters); }
  static Float LoadFours(const float* from, size_t stride) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), _mm_loadu_ps(from + stride), 1);
  }
  static Float PreluByMax(Float x, Float slope) { return _mm256_max_ps(_mm256_mul_ps(x, slope), x); }
  static Float Prelu(Float x, Float slope) { return _mm256_blendv_ps(x, _mm256_mul_ps(x, slope), x); }
};

struct Bytes {
  static __m256i Xor(__m256i a, __m256i b) { return _mm256_xor_si256(a, b); }
  static __m256i LowHalves(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi32(kLowHalves)); }
  static __m256i HighHalves(__m256i x) { return LowHalves(_mm256_srli_epi16(x, 4)); }
  static __m256i AddBits(__m256i sums, __m256i halves) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    return _mm256_add_epi8(sums, _mm256_shuffle_epi8(table, halves));
  }
  static __m256i SumOfBytes(__m256i bytes) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
  }
};

struct Isa {
  using Simd = binaryvit::Simd;
  using Tile = HalfByteTile<Simd, Bytes, 4, 8>;

  template <int vectors>
  static void StoreMasks(const __m256 (&masks)[vectors], uint32_t* bits, size_t i) {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      reinterpret_cast<unsigned char*>(bits)[i / 8 + static_cast<size_t>(v)] =
          static_cast<unsigned char>(_mm256_movemask_ps(masks[v]));
    });
  }

  static void StoreBytes(uint8_t* to, const __m256i (&counts)[2]) {
    const __m256i halves = _mm256_packs_epi32(counts[0], counts[1]);  // each half: four counts of one, four of the other
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi32(bytes, _MM_SHUFFLE(3, 1, 2, 0)));
  }

  static void PackBytesBelow(const uint8_t* counts, uint8_t limit, size_t blocks, uint32_t* bits) {
    const __m256i limits = _mm256_set1_epi8(static_cast<char>(limit));
    for (size_t word = 0; word < 2 * blocks; ++word) {
      const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(counts) + word);
      bits[word] = ~static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(bytes, limits), bytes)));
    }
  }

  static void SumExponentials(const uint8_t* counts, size_t rows, size_t blocks, const Probabilities& table, uint8_t* least,
                              int32_t* sums) {
    for (size_t row = 0; row < rows; ++row, counts += blocks * kBytesPerBlock) {
      const auto* bytes = reinterpret_cast<const __m256i*>(counts);
      __m256i minimum = _mm256_set1_epi8(-1);
      for (size_t i = 0; i < 2 * blocks; ++i) minimum = _mm256_min_epu8(minimum, _mm256_load_si256(bytes + i));
      __m128i half = _mm_min_epu8(_mm256_castsi256_si128(minimum), _mm256_extracti128_si256(minimum, 1));
      half = _mm_minpos_epu16(_mm_min_epu8(half, _mm_srli_epi16(half, 8)));
      least[row] = static_cast<uint8_t>(_mm_cvtsi128_si32(half));
      minimum = _mm256_broadcastb_epi8(half);
      const __m256i last = _mm256_set1_epi8(Probabilities::kSize - 1), zero = _mm256_setzero_si256();
      __m256i low_sum = zero, high_sum = zero;
      for (size_t i = 0; i < 2 * blocks; ++i) {
        const __m256i index = _mm256_min_epu8(_mm256_sub_epi8(_mm256_load_si256(bytes + i), minimum), last);
        __m256i low = zero, high = zero;
        Unroll<4>([&](int quarter) BINARYVIT_INLINE {
          const auto entries = [&](const uint8_t* from) {
            return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(from) + quarter));
          };
          // Where the index isn't in this quarter its top bit is set, for which the shuffle gives 0.
          const __m256i here = _mm256_adds_epu8(_mm256_sub_epi8(index, _mm256_set1_epi8(static_cast<char>(16 * quarter))),
                                                _mm256_set1_epi8(0x70));
          low = _mm256_or_si256(low, _mm256_shuffle_epi8(entries(table.low), here));
          high = _mm256_or_si256(high, _mm256_shuffle_epi8(entries(table.high), here));
        });
        low_sum = _mm256_add_epi64(low_sum, _mm256_sad_epu8(low, zero));
        high_sum = _mm256_add_epi64(high_sum, _mm256_sad_epu8(high, zero));
      }
      const __m256i sum = _mm256_add_epi64(low_sum, _mm256_slli_epi64(high_sum, 8));
      const __m128i pair = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
      sums[row] = _mm_cvtsi128_si32(pair) + _mm_extract_epi32(pair, 2);
    }
  }
};

}  // namespace

const KernelSet kAvx2Kernels = MakeKernelSet<Isa>("avx2");

}  // namespace binaryvit
