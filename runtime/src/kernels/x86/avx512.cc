// AVX-512 with VPOPCNTDQ: a lane is a unit, 32 bits of it at a time, so that counts need no sum across lanes.
#include "kernels/x86/simd512.h"

namespace binaryvit {
namespace {

struct Tile {
  static constexpr size_t kUnits = 16, kWordGroup = 1, kHiddenUnits = 16;
  static constexpr int kRows = 7, kBlocks = 2;  // the maps of images of 224 x 224 have multiples of 49 positions
  static constexpr size_t kInterleavedSize = 0;
  static constexpr bool kPushesSigns = false, kUnrollsWords = true;

  template <int rows, int vectors, int constant_words, bool>
  static inline BINARYVIT_INLINE void Count(const uint32_t* activations, size_t stride, const uint32_t* weights,
                                            size_t words, __m512i (&counts)[rows][vectors]) {
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE { counts[r][v] = _mm512_setzero_si512(); });
    });
    if (constant_words > 0) words = constant_words;
    for (size_t word = 0; word < words; ++word) {
      // With one vector, activations are operands in memory. The compiler must think that they changed, or it would keep
      // them in more registers than there are.
      if (constant_words > 0 && vectors == 1) asm volatile("" : "+r"(activations));
      __m512i weight[vectors];
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        weight[v] = _mm512_load_si512(weights + (v * words + word) * kUnits);
      });
      Unroll<rows>([&](int r) BINARYVIT_INLINE {
        const __m512i activation = _mm512_set1_epi32(static_cast<int>(activations[r * stride + word]));
        Unroll<vectors>([&](int v) BINARYVIT_INLINE {
          const __m512i differing = _mm512_popcnt_epi32(_mm512_xor_si512(activation, weight[v]));
          counts[r][v] = _mm512_add_epi32(counts[r][v], differing);
        });
      });
    }
  }
};

struct Isa : Isa512 {
  using Tile = binaryvit::Tile;

  static uint64_t SumExponentials(const uint8_t* counts, size_t blocks, const Probabilities& table, uint8_t* least) {
    const auto lookup = [](__m512i index, const uint8_t* from) {
      return _mm512_permutexvar_epi8(index, _mm512_load_si512(from));
    };
    return SumBy(lookup, counts, blocks, table, least);
  }
};

}  // namespace

const KernelSet kAvx512Kernels = MakeKernelSet<Isa>("avx512");

}  // namespace binaryvit
