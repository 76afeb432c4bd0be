// x86-64-v2: POPCNT counts 64 bits of a unit faster than SSE could, so products are scalar and four units share a load.
#include <emmintrin.h>
#include <nmmintrin.h>

#include <cstring>

#include "kernels/generic/make_kernel_set.h"

namespace binaryvit {
namespace {

struct Simd {
  using Float = __m128;
  using Int = __m128i;
  using Mask = __m128;  // its top bits
  static constexpr size_t kLanes = 4;
  static constexpr bool kHasMultiplyAdd = false;

  static Float Load(const float* from) { return _mm_loadu_ps(from); }
  static Int Load(const int32_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
  static void Store(float* to, Float x) { _mm_storeu_ps(to, x); }
  static void Store(int32_t* to, Int x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), x); }
  static Float Set(float x) { return _mm_set1_ps(x); }
  static Int Set(int32_t x) { return _mm_set1_epi32(x); }
  static Float Add(Float a, Float b) { return _mm_add_ps(a, b); }
  static Int Add(Int a, Int b) { return _mm_add_epi32(a, b); }
  static Int Subtract(Int a, Int b) { return _mm_sub_epi32(a, b); }
  static Float Multiply(Float a, Float b) { return _mm_mul_ps(a, b); }
  static Int Min(Int a, Int b) { return _mm_min_epi32(a, b); }
  static Int Max(Int a, Int b) { return _mm_max_epi32(a, b); }
  static Float ToFloat(Int x) { return _mm_cvtepi32_ps(x); }
  static Mask Less(Float a, Float b) { return _mm_cmplt_ps(a, b); }
  static Mask Less(Int a, Int b) { return _mm_castsi128_ps(_mm_cmplt_epi32(a, b)); }
  static Int AddLess(Int count, Int a, Int b) { return _mm_sub_epi32(count, _mm_cmplt_epi32(a, b)); }
  static void Deinterleave(Float a, Float b, Float* even, Float* odd) {
    *even = _mm_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0));
    *odd = _mm_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1));
  }
  static void LoadQuarters(const float* from, Float (&quarters)[4]) { QuartersByHalves<Simd>(from, quarters); }
  static Float LoadFours(const float* from, size_t) { return Load(from); }
  static Float PreluByMax(Float x, Float slope) { return _mm_max_ps(_mm_mul_ps(x, slope), x); }
  static Float Prelu(Float x, Float slope) { return _mm_blendv_ps(x, _mm_mul_ps(x, slope), x); }
};

struct Tile {
  static constexpr size_t kUnits = 4, kWordGroup = 2, kHiddenUnits = 4;
  static constexpr int kRows = 2, kBlocks = 1;
  static constexpr size_t kInterleavedSize = 0;
  static constexpr bool kPushesSigns = false, kUnrollsWords = false;

  template <int rows, int vectors, int constant_words, bool>
  static inline BINARYVIT_INLINE void Count(const uint32_t* activations, size_t stride, const uint32_t* weights,
                                            size_t words, __m128i (&sums)[rows][vectors]) {
    if (constant_words > 0) words = constant_words;
    uint64_t counts[rows][kUnits];
    Unroll<rows>([&](int r) BINARYVIT_INLINE { Unroll<kUnits>([&](int u) BINARYVIT_INLINE { counts[r][u] = 0; }); });
    size_t word = 0;
    for (; word + 1 < words; word += kWordGroup, weights += kUnits * kWordGroup) {
      AddWords<rows, 2>(activations + word, stride, weights, counts);
    }
    if (word < words) AddWords<rows, 1>(activations + word, stride, weights, counts);
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      sums[r][0] = _mm_setr_epi32(static_cast<int>(counts[r][0]), static_cast<int>(counts[r][1]),
                                  static_cast<int>(counts[r][2]), static_cast<int>(counts[r][3]));
    });
  }

 private:
  template <int rows, int words>
  static inline BINARYVIT_INLINE void AddWords(const uint32_t* activations, size_t stride, const uint32_t* weights,
                                               uint64_t (&counts)[rows][kUnits]) {
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      uint64_t activation = 0;
      std::memcpy(&activation, activations + r * stride, words * sizeof(uint32_t));
      Unroll<kUnits>([&](int u) BINARYVIT_INLINE {
        uint64_t weight;
        std::memcpy(&weight, weights + u * kWordGroup, sizeof weight);
        counts[r][u] += static_cast<uint64_t>(_mm_popcnt_u64(activation ^ weight));
      });
    });
  }
};

struct Isa {
  using Simd = binaryvit::Simd;
  using Tile = binaryvit::Tile;

  template <int vectors>
  static void StoreMasks(const __m128 (&masks)[vectors], uint32_t* bits, size_t i) {
    uint32_t packed = 0;
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      packed |= static_cast<uint32_t>(_mm_movemask_ps(masks[v])) << (v * static_cast<int>(Simd::kLanes));
    });
    if constexpr (vectors == 8) {
      bits[i / kBitsPerWord] = packed;
    } else {
      static_assert(vectors == 1, "half a byte");
      unsigned char& byte = reinterpret_cast<unsigned char*>(bits)[i / 8];
      const unsigned low = i % 8 == 0 ? 0 : byte;
      byte = static_cast<unsigned char>(low | packed << (i % 8));
    }
  }

  static void StoreBytes(uint8_t* to, const __m128i (&counts)[1]) {
    const __m128i halves = _mm_packs_epi32(counts[0], counts[0]);
    const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(halves, halves));
    std::memcpy(to, &bytes, sizeof bytes);
  }

  static void PackBytesBelow(const uint8_t* counts, uint8_t limit, size_t blocks, uint32_t* bits) {
    const __m128i limits = _mm_set1_epi8(static_cast<char>(limit));
    const auto not_below = [&](size_t i) {
      const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(counts) + i);
      return static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(bytes, limits), bytes)));
    };
    for (size_t word = 0; word < 2 * blocks; ++word) bits[word] = ~(not_below(2 * word) | not_below(2 * word + 1) << 16);
  }

  static void SumExponentials(const uint8_t* counts, size_t rows, size_t blocks, const Probabilities& table, uint8_t* least,
                              int32_t* sums) {
    for (size_t row = 0; row < rows; ++row, counts += blocks * kBytesPerBlock) {
      const auto* bytes = reinterpret_cast<const __m128i*>(counts);
      __m128i minimum = _mm_set1_epi8(-1);
      for (size_t i = 0; i < 4 * blocks; ++i) minimum = _mm_min_epu8(minimum, _mm_load_si128(bytes + i));
      minimum = _mm_minpos_epu16(_mm_min_epu8(minimum, _mm_srli_epi16(minimum, 8)));
      least[row] = static_cast<uint8_t>(_mm_cvtsi128_si32(minimum));
      minimum = _mm_set1_epi8(static_cast<char>(least[row]));
      const __m128i last = _mm_set1_epi8(Probabilities::kSize - 1), zero = _mm_setzero_si128();
      __m128i low_sum = zero, high_sum = zero;
      for (size_t i = 0; i < 4 * blocks; ++i) {
        const __m128i index = _mm_min_epu8(_mm_sub_epi8(_mm_load_si128(bytes + i), minimum), last);
        __m128i low = zero, high = zero;
        Unroll<4>([&](int quarter) BINARYVIT_INLINE {
          const auto entries = [&](const uint8_t* from) {
            return _mm_load_si128(reinterpret_cast<const __m128i*>(from) + quarter);
          };
          // Where the index isn't in this quarter its top bit is set, for which the shuffle gives 0.
          const __m128i here =
              _mm_adds_epu8(_mm_sub_epi8(index, _mm_set1_epi8(static_cast<char>(16 * quarter))), _mm_set1_epi8(0x70));
          low = _mm_or_si128(low, _mm_shuffle_epi8(entries(table.low), here));
          high = _mm_or_si128(high, _mm_shuffle_epi8(entries(table.high), here));
        });
        low_sum = _mm_add_epi64(low_sum, _mm_sad_epu8(low, zero));
        high_sum = _mm_add_epi64(high_sum, _mm_sad_epu8(high, zero));
      }
      const __m128i sum = _mm_add_epi64(low_sum, _mm_slli_epi64(high_sum, 8));
      sums[row] = _mm_cvtsi128_si32(sum) + _mm_extract_epi32(sum, 2);
    }
  }
};

}  // namespace

const KernelSet kSseKernels = MakeKernelSet<Isa>("sse");

}  // namespace binaryvit
