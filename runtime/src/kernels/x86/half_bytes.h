// Products of bits without an instruction that counts them: a table of the 16 half-bytes does. A lane is a unit, 32 bits of it
// at a time; bytes are summed first, and lanes only when a byte might overflow.
//
// Bytes has operations on vectors of the Simd's Int: Xor, LowHalves and HighHalves of bytes, AddBits, which adds the set bits of
// half-bytes to sums of bytes, and SumOfBytes of each lane.
#ifndef BINARYVIT_KERNELS_X86_HALF_BYTES_H_
#define BINARYVIT_KERNELS_X86_HALF_BYTES_H_

#include "kernels/generic/product.h"

namespace binaryvit {
namespace {

constexpr size_t kWordsBeforeOverflow = 31;  // of 8 bits per byte
constexpr uint32_t kLowHalves = 0x0F0F0F0F;  // of bytes

template <typename Simd, typename Bytes, int tile_rows, size_t hidden_units>
struct HalfByteTile {
  static constexpr size_t kUnits = 16, kWordGroup = 1, kHiddenUnits = hidden_units;
  static constexpr int kRows = tile_rows, kBlocks = 1;
  static constexpr size_t kInterleavedSize = 2;  // half-bytes
  static constexpr bool kPushesSigns = false, kUnrollsWords = false;

  static void StoreInterleaved(uint32_t* to, uint32_t word) { to[0] = word & kLowHalves, to[1] = word >> 4 & kLowHalves; }

  template <int rows, int vectors, int constant_words, bool interleaved>
  static inline BINARYVIT_INLINE void Count(const uint32_t* activations, size_t stride, const uint32_t* weights,
                                            size_t words, typename Simd::Int (&counts)[rows][vectors]) {
    constexpr size_t units = vectors * Simd::kLanes;
    if (constant_words > 0) words = constant_words;
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE { counts[r][v] = Simd::Set(int32_t{0}); });
    });
    for (size_t first = 0; first < words; first += kWordsBeforeOverflow) {
      const size_t last = words - first < kWordsBeforeOverflow ? words : first + kWordsBeforeOverflow;
      typename Simd::Int bytes[rows][vectors];
      Unroll<rows>([&](int r) BINARYVIT_INLINE {
        Unroll<vectors>([&](int v) BINARYVIT_INLINE { bytes[r][v] = Simd::Set(int32_t{0}); });
      });
      for (size_t word = first; word < last; ++word) {
        typename Simd::Int low[vectors], high[vectors];
        Unroll<vectors>([&](int v) BINARYVIT_INLINE {
          const auto weight = Simd::Load(reinterpret_cast<const int32_t*>(weights + word * units + v * Simd::kLanes));
          low[v] = Bytes::LowHalves(weight), high[v] = Bytes::HighHalves(weight);
        });
        Unroll<rows>([&](int r) BINARYVIT_INLINE {
          typename Simd::Int low_of_row, high_of_row;
          if constexpr (interleaved) {
            const uint32_t* halves = activations + (word * rows + static_cast<size_t>(r)) * kInterleavedSize;
            low_of_row = Simd::Set(static_cast<int32_t>(halves[0]));
            high_of_row = Simd::Set(static_cast<int32_t>(halves[1]));
          } else {
            const auto activation = Simd::Set(static_cast<int32_t>(activations[r * stride + word]));
            low_of_row = Bytes::LowHalves(activation), high_of_row = Bytes::HighHalves(activation);
          }
          Unroll<vectors>([&](int v) BINARYVIT_INLINE {
            bytes[r][v] = Bytes::AddBits(bytes[r][v], Bytes::Xor(low_of_row, low[v]));
            bytes[r][v] = Bytes::AddBits(bytes[r][v], Bytes::Xor(high_of_row, high[v]));
          });
        });
      }
      Unroll<rows>([&](int r) BINARYVIT_INLINE {
        Unroll<vectors>([&](int v) BINARYVIT_INLINE {
          counts[r][v] = Simd::Add(counts[r][v], Bytes::SumOfBytes(bytes[r][v]));
        });
      });
    }
  }
};

}  // namespace
}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_X86_HALF_BYTES_H_
