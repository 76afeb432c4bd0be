// AVX2 counts bits with a table of the 16 half-bytes. A lane is a unit, 32 bits of it at a time; bytes are summed first,
// and lanes only when a byte might overflow.
#include <immintrin.h>

#include "kernel_loop.h"

namespace binaryvit {
namespace {

constexpr size_t kLanes = 8;
constexpr size_t kWordsBeforeOverflow = 31;  // of 8 bits a byte

struct CountOutput {
  struct Column {
    void Store(int32_t* to, __m256i count) const {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), count);
    }
  };

  Target<int32_t> target;

  Column At(size_t) const { return {}; }
};

template <bool clamped>
struct FloatOutput {
  struct Column {
    __m256 multiplier, bias;
    __m256i clamp_min, clamp_max;

    void Store(float* to, __m256i count) const {
      if constexpr (clamped) {
        count = _mm256_max_epi32(_mm256_min_epi32(_mm256_slli_epi32(count, 1), clamp_max), clamp_min);
      }
      _mm256_storeu_ps(to, _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(count), multiplier), bias));
    }
  };

  Target<float> target;
  const Affine& affine;

  Column At(size_t unit) const {
    return {_mm256_load_ps(affine.multiplier + unit), _mm256_load_ps(affine.bias + unit),
            _mm256_set1_epi32(affine.clamp_min), _mm256_set1_epi32(affine.clamp_max)};
  }
};

__m256i BitsOfBytes(__m256i x) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(x, mask));
  const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), mask));
  return _mm256_add_epi8(low, high);
}

__m256i SumOfBytes(__m256i bytes) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
}

struct Tile {
  static constexpr size_t kUnits = 16, kWordGroup = 1, kRows = 4, kBlocks = 1;
  static constexpr int kVectors = kUnits / kLanes;

  template <int rows, int blocks, typename Output>
  static void Run(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words,
                  const Output& output, size_t row, size_t unit) {
    static_assert(blocks == 1, "two blocks need more registers than there are");
    __m256i counts[rows][kVectors];
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<kVectors>([&](int v) BINARYVIT_INLINE { counts[r][v] = _mm256_setzero_si256(); });
    });
    for (size_t first = 0; first < words; first += kWordsBeforeOverflow) {
      const size_t last = words - first < kWordsBeforeOverflow ? words : first + kWordsBeforeOverflow;
      __m256i bytes[rows][kVectors];
      Unroll<rows>([&](int r) BINARYVIT_INLINE {
        Unroll<kVectors>([&](int v) BINARYVIT_INLINE { bytes[r][v] = _mm256_setzero_si256(); });
      });
      for (size_t word = first; word < last; ++word) {
        const auto* weight = reinterpret_cast<const __m256i*>(weights + word * kUnits);
        Unroll<rows>([&](int r) BINARYVIT_INLINE {
          const __m256i activation = _mm256_set1_epi32(static_cast<int>(activations[r * stride + word]));
          Unroll<kVectors>([&](int v) BINARYVIT_INLINE {
            const __m256i differing = _mm256_xor_si256(activation, _mm256_load_si256(weight + v));
            bytes[r][v] = _mm256_add_epi8(bytes[r][v], BitsOfBytes(differing));
          });
        });
      }
      Unroll<rows>([&](int r) BINARYVIT_INLINE {
        Unroll<kVectors>([&](int v) BINARYVIT_INLINE {
          counts[r][v] = _mm256_add_epi32(counts[r][v], SumOfBytes(bytes[r][v]));
        });
      });
    }
    StoreTile<rows, kVectors, kLanes>(output, row, unit,
                                      [&](int r, int v) BINARYVIT_INLINE { return counts[r][v]; });
  }
};

void PackSigns(const float* values, size_t words, uint32_t* bits) {
  const __m256 zero = _mm256_setzero_ps();
  for (size_t word = 0; word < words; ++word) {
    uint32_t packed = 0;
    for (size_t bit = 0; bit < kBitsPerWord; bit += kLanes, values += kLanes) {
      const __m256 negative = _mm256_cmp_ps(_mm256_loadu_ps(values), zero, _CMP_LT_OQ);
      packed |= static_cast<uint32_t>(_mm256_movemask_ps(negative)) << bit;
    }
    bits[word] = packed;
  }
}

struct Isa {
  using Tile = binaryvit::Tile;
  using CountOutput = binaryvit::CountOutput;
  template <bool clamped>
  using FloatOutput = binaryvit::FloatOutput<clamped>;
  static constexpr auto PackSigns = binaryvit::PackSigns;
};

}  // namespace

const KernelSet kAvx2Kernels = MakeKernelSet<Isa>("avx2");

}  // namespace binaryvit
