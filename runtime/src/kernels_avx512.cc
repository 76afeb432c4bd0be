// AVX-512 with VPOPCNTDQ: a lane is a unit, 32 bits of it at a time, so that counts need no sum across lanes.
#include <immintrin.h>

#include "kernel_loop.h"

namespace binaryvit {
namespace {

struct CountOutput {
  struct Column {
    void Store(int32_t* to, __m512i count) const { _mm512_storeu_si512(to, count); }
  };

  Target<int32_t> target;

  Column At(size_t) const { return {}; }
};

template <bool clamped>
struct FloatOutput {
  struct Column {
    __m512 multiplier, bias;
    __m512i clamp_min, clamp_max;

    void Store(float* to, __m512i count) const {
      if constexpr (clamped) {
        count = _mm512_max_epi32(_mm512_min_epi32(_mm512_slli_epi32(count, 1), clamp_max), clamp_min);
      }
      _mm512_storeu_ps(to, _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(count), multiplier), bias));
    }
  };

  Target<float> target;
  const Affine& affine;

  Column At(size_t unit) const {
    return {_mm512_load_ps(affine.multiplier + unit), _mm512_load_ps(affine.bias + unit),
            _mm512_set1_epi32(affine.clamp_min), _mm512_set1_epi32(affine.clamp_max)};
  }
};

struct Tile {
  static constexpr size_t kUnits = 16, kWordGroup = 1, kRows = 8, kBlocks = 2;

  template <int rows, int blocks, typename Output>
  static void Run(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words,
                  const Output& output, size_t row, size_t unit) {
    __m512i counts[rows][blocks];
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<blocks>([&](int b) BINARYVIT_INLINE { counts[r][b] = _mm512_setzero_si512(); });
    });
    for (size_t word = 0; word < words; ++word) {
      __m512i weight[blocks];
      Unroll<blocks>([&](int b) BINARYVIT_INLINE {
        weight[b] = _mm512_load_si512(weights + (b * words + word) * kUnits);
      });
      Unroll<rows>([&](int r) BINARYVIT_INLINE {
        const __m512i activation = _mm512_set1_epi32(static_cast<int>(activations[r * stride + word]));
        Unroll<blocks>([&](int b) BINARYVIT_INLINE {
          const __m512i differing = _mm512_popcnt_epi32(_mm512_xor_si512(activation, weight[b]));
          counts[r][b] = _mm512_add_epi32(counts[r][b], differing);
        });
      });
    }
    StoreTile<rows, blocks, kUnits>(output, row, unit, [&](int r, int b) BINARYVIT_INLINE { return counts[r][b]; });
  }
};

void PackSigns(const float* values, size_t words, uint32_t* bits) {
  const __m512 zero = _mm512_setzero_ps();
  for (size_t word = 0; word < words; ++word, values += kBitsPerWord) {
    const __mmask16 low = _mm512_cmp_ps_mask(_mm512_loadu_ps(values), zero, _CMP_LT_OQ);
    const __mmask16 high = _mm512_cmp_ps_mask(_mm512_loadu_ps(values + 16), zero, _CMP_LT_OQ);
    bits[word] = static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16;
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

const KernelSet kAvx512Kernels = MakeKernelSet<Isa>("avx512");

}  // namespace binaryvit
