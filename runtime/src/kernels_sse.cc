// x86-64-v2: POPCNT counts 64 bits of a unit faster than SSE could, so products are scalar and four units share a load.
#include <emmintrin.h>
#include <nmmintrin.h>

#include <cstring>

#include "kernel_loop.h"

namespace binaryvit {
namespace {

struct CountOutput {
  struct Column {
    void Store(int32_t* to, __m128i count) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), count); }
  };

  Target<int32_t> target;

  Column At(size_t) const { return {}; }
};

template <bool clamped>
struct FloatOutput {
  struct Column {
    __m128 multiplier, bias;
    __m128i clamp_min, clamp_max;

    void Store(float* to, __m128i count) const {
      if constexpr (clamped) {
        count = _mm_max_epi32(_mm_min_epi32(_mm_slli_epi32(count, 1), clamp_max), clamp_min);
      }
      _mm_storeu_ps(to, _mm_add_ps(_mm_mul_ps(_mm_cvtepi32_ps(count), multiplier), bias));
    }
  };

  Target<float> target;
  const Affine& affine;

  Column At(size_t unit) const {
    return {_mm_load_ps(affine.multiplier + unit), _mm_load_ps(affine.bias + unit), _mm_set1_epi32(affine.clamp_min),
            _mm_set1_epi32(affine.clamp_max)};
  }
};

struct Tile {
  static constexpr size_t kUnits = 4, kWordGroup = 2, kRows = 2, kBlocks = 1;

  template <int rows, int blocks, typename Output>
  static void Run(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words,
                  const Output& output, size_t row, size_t unit) {
    static_assert(blocks == 1, "there is one size");
    uint64_t counts[rows][kUnits];
    Unroll<rows>([&](int r) BINARYVIT_INLINE { Unroll<kUnits>([&](int u) BINARYVIT_INLINE { counts[r][u] = 0; }); });
    size_t word = 0;
    for (; word + 1 < words; word += kWordGroup, weights += kUnits * kWordGroup) {
      AddWords<rows, 2>(activations + word, stride, weights, counts);
    }
    if (word < words) AddWords<rows, 1>(activations + word, stride, weights, counts);
    StoreTile<rows, 1, kUnits>(output, row, unit, [&](int r, int) BINARYVIT_INLINE {
      return _mm_setr_epi32(static_cast<int>(counts[r][0]), static_cast<int>(counts[r][1]),
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

void PackSigns(const float* values, size_t words, uint32_t* bits) {
  const __m128 zero = _mm_setzero_ps();
  for (size_t word = 0; word < words; ++word) {
    uint32_t packed = 0;
    for (size_t bit = 0; bit < kBitsPerWord; bit += 4, values += 4) {
      packed |= static_cast<uint32_t>(_mm_movemask_ps(_mm_cmplt_ps(_mm_loadu_ps(values), zero))) << bit;
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

const KernelSet kSseKernels = MakeKernelSet<Isa>("sse");

}  // namespace binaryvit
