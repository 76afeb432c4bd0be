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
      if (constant_words > 0 && vectors == 1) Hide<Simd>(activations);
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

  static void SumExponentials(const uint8_t* counts, size_t rows, size_t blocks, const Probabilities& table, uint8_t* least,
                              int32_t* sums) {
    const auto lookup = [](__m512i index, const uint8_t* from) {
      return _mm512_permutexvar_epi8(index, _mm512_load_si512(from));
    };
    SumBy(lookup, counts, rows, blocks, table, least, sums);
  }
};

// Four vectors of counts become bytes together: one by one that takes more than counting.
void CountBytes(const Rows& rows, const Weights& weights, uint8_t* output, size_t stride) {
  constexpr size_t units = 4 * Tile::kUnits;
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  Weights rest = weights;
  for (; rest.units >= units; rest.units -= units, rest.data += units * rest.words, output += units) {
    for (size_t row = 0; row < rows.count; ++row) {
      __m512i counts[4];
      Unroll<4>([&](int v) BINARYVIT_INLINE { counts[v] = _mm512_setzero_si512(); });
      for (size_t word = 0; word < rest.words; ++word) {
        const __m512i activation = _mm512_set1_epi32(static_cast<int>(rows.data[row * rows.stride + word]));
        Unroll<4>([&](int v) BINARYVIT_INLINE {
          const __m512i weight = _mm512_load_si512(rest.data + (static_cast<size_t>(v) * rest.words + word) * Tile::kUnits);
          counts[v] = _mm512_add_epi32(counts[v], _mm512_popcnt_epi32(_mm512_xor_si512(activation, weight)));
        });
      }
      const __m512i packed = _mm512_packus_epi16(_mm512_packus_epi32(counts[0], counts[1]),
                                                 _mm512_packus_epi32(counts[2], counts[3]));
      _mm512_storeu_si512(output + row * stride, _mm512_permutexvar_epi32(order, packed));
    }
  }
  if (rest.units > 0) CountBytesAll<Isa>(rows, rest, output, stride);
}

constexpr KernelSet MakeAvx512Kernels() {
  KernelSet kernels = MakeKernelSet<Isa>("avx512");
  kernels.count_bytes = CountBytes;
  return kernels;
}

}  // namespace

const KernelSet kAvx512Kernels = MakeAvx512Kernels();

}  // namespace binaryvit
