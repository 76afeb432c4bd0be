// AVX-512 without VPOPCNTDQ, such as that of Skylake-SP and Cascade Lake, counts bits by half-bytes.
#include "kernels/x86/half_bytes.h"
#include "kernels/x86/simd512.h"

namespace binaryvit {
namespace {

struct Bytes {
  static __m512i Xor(__m512i a, __m512i b) { return _mm512_xor_si512(a, b); }
  static __m512i LowHalves(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi32(kLowHalves)); }
  static __m512i HighHalves(__m512i x) { return LowHalves(_mm512_srli_epi16(x, 4)); }
  static __m512i AddBits(__m512i sums, __m512i halves) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    return _mm512_add_epi8(sums, _mm512_shuffle_epi8(table, halves));
  }
  static __m512i SumOfBytes(__m512i bytes) {
    return _mm512_madd_epi16(_mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1)), _mm512_set1_epi16(1));
  }
};

struct Isa : Isa512 {
  using Tile = HalfByteTile<Simd, Bytes, 7, 16>;

  static void SumExponentials(const uint8_t* counts, size_t rows, size_t blocks, const Probabilities& table, uint8_t* least,
                              int32_t* sums) {
    const auto lookup = [](__m512i index, const uint8_t* from) {
      __m512i entries = _mm512_setzero_si512();
      Unroll<4>([&](int quarter) BINARYVIT_INLINE {
        const __m512i part = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(from) + quarter));
        // Where the index isn't in this quarter its top bit is set, for which the shuffle gives 0.
        const __m512i here = _mm512_adds_epu8(
            _mm512_sub_epi8(index, _mm512_set1_epi8(static_cast<char>(16 * quarter))), _mm512_set1_epi8(0x70));
        entries = _mm512_or_si512(entries, _mm512_shuffle_epi8(part, here));
      });
      return entries;
    };
    SumBy(lookup, counts, rows, blocks, table, least, sums);
  }
};

}  // namespace

const KernelSet kAvx512BwKernels = MakeKernelSet<Isa>("avx512bw");

}  // namespace binaryvit
