// Products of bits in terms of a processor's vectors. Tiles cover rows and units, and the counts of a tile are transformed
// while they are in registers.
#ifndef BINARYVIT_KERNELS_GENERIC_PRODUCT_H_
#define BINARYVIT_KERNELS_GENERIC_PRODUCT_H_

#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/kernel_set.h"

#define BINARYVIT_INLINE __attribute__((always_inline))

namespace binaryvit {

// Calls body(0) to body(count - 1), each inlined with its constant: compilers keep an array in registers only if its indices
// are constants early.
template <typename Body, int... i>
inline BINARYVIT_INLINE void UnrollSequence(const Body& body, std::integer_sequence<int, i...>) {
  (body(i), ...);
}

template <int count, typename Body>
inline BINARYVIT_INLINE void Unroll(const Body& body) {
  UnrollSequence(body, std::make_integer_sequence<int, count>());
}

// Makes the compiler think that the value changed, where vectors are long: addresses of a tile's rows are computed anew then,
// which is little beside such vectors. GCC would keep all of them, and put some into vector registers.
template <typename Simd, typename T>
inline BINARYVIT_INLINE void Hide([[maybe_unused]] T& value) {
  if constexpr (Simd::kLanes == 16) asm volatile("" : "+r"(value));
}

// Calls body(first index, std::integral_constant<int, rows>) for all of `count` rows: `most` at a time, a power of two up to
// 8 or 7, and then for what is left by powers of two.
template <int most, typename Body>
inline BINARYVIT_INLINE void ForRowTiles(size_t count, const Body& body) {
  size_t row = 0;
  for (; row + most <= count; row += most) body(row, std::integral_constant<int, most>());
  const size_t left = count - row;
  if constexpr (most > 4) {
    if (left & 4) body(row, std::integral_constant<int, 4>()), row += 4;
  }
  if constexpr (most > 2) {
    if (left & 2) body(row, std::integral_constant<int, 2>()), row += 2;
  }
  if constexpr (most > 1) {
    if (left & 1) body(row, std::integral_constant<int, 1>());
  }
}

// A Simd has the types Float and Int, vectors of kLanes 32-bit values, Mask, what comparing them gives, and their
// operations: see scalar.cc.

// Simd::LoadQuarters where the processor has no such load.
template <typename Simd>
inline BINARYVIT_INLINE void QuartersByHalves(const float* from, typename Simd::Float (&quarters)[4]) {
  typename Simd::Float even[2], odd[2];
  for (int i = 0; i < 2; ++i) {
    const float* half = from + 2 * i * Simd::kLanes;
    Simd::Deinterleave(Simd::Load(half), Simd::Load(half + Simd::kLanes), &even[i], &odd[i]);
  }
  Simd::Deinterleave(even[0], even[1], &quarters[0], &quarters[2]);
  Simd::Deinterleave(odd[0], odd[1], &quarters[1], &quarters[3]);
}

template <typename Simd, bool small_slopes>
inline BINARYVIT_INLINE typename Simd::Float Prelu(typename Simd::Float x, typename Simd::Float slope) {
  if constexpr (small_slopes) {
    return Simd::PreluByMax(x, slope);
  } else {
    return Simd::Prelu(x, slope);
  }
}

// Calls body with std::true_type or std::false_type for `small_slopes`.
template <typename Body>
inline BINARYVIT_INLINE void ForSlopes(bool small_slopes, const Body& body) {
  small_slopes ? body(std::true_type()) : body(std::false_type());
}

// An output takes the counts of a tile. At(unit) gives a column with the constants of the units of a vector, whose
// Store(place, i, counts) computes the value i places after a place; target.At(row, unit) gives the place.

template <typename T>
struct Target {
  using Value = T;
  static constexpr bool kIsPadded = false;
  static constexpr bool kHasSigns = false;

  T* data;
  size_t stride;
  size_t first_unit;  // the first one at `data`

  T* At(size_t row, size_t unit) const { return data + row * stride + (unit - first_unit); }
};

template <typename Simd>
struct CountOutput {
  struct Column {
    void Store(int32_t* to, size_t i, typename Simd::Int count) const { Simd::Store(to + i, count); }
  };

  Target<int32_t> target;

  Column At(size_t) const { return {}; }
};

// Takes the counts of a tile's row at once.
struct ByteOutput {
  Target<uint8_t> target;
};

template <typename Simd, bool clamped>
struct AffineOutput {
  struct Column {
    typename Simd::Float multiplier, bias;
    typename Simd::Int clamp_min, clamp_max;

    void Store(float* to, size_t i, typename Simd::Int count) const {
      if constexpr (clamped) count = Simd::Max(Simd::Min(Simd::Add(count, count), clamp_max), clamp_min);
      Simd::Store(to + i, Simd::Add(Simd::Multiply(Simd::ToFloat(count), multiplier), bias));
    }
  };

  Target<float> target;
  const Affine& affine;

  Column At(size_t unit) const {
    return {Simd::Load(affine.multiplier + unit), Simd::Load(affine.bias + unit), Simd::Set(affine.clamp_min),
            Simd::Set(affine.clamp_max)};
  }
};

// Where projections and attention read and write; all rows have room for whole tiles. Store gives the mask of the signs.
template <bool has_signs>
struct ProjectionTarget {
  static constexpr bool kIsPadded = true;
  static constexpr bool kHasSigns = has_signs;
  struct Place {
    const float* shortcut;
    const float* residual;
    float* output;
  };

  const float* shortcut;
  const float* residual;
  float* output;
  size_t stride;
  BitRows signs;

  Place At(size_t row, size_t unit) const {
    const size_t i = row * stride + unit;
    return {shortcut + i, residual + i, output + i};
  }
};

template <typename Simd, bool small_slopes, bool has_signs, bool scaled, bool has_residual>
struct ProjectionOutput {
  using Float = typename Simd::Float;
  struct Column {
    Float multiplier, bias, slope, scale, shift, limit;

    typename Simd::Mask Store(const typename ProjectionTarget<has_signs>::Place& place, size_t i,
                              typename Simd::Int count) const {
      Float x = Simd::Add(Simd::Multiply(Simd::ToFloat(count), multiplier), bias);
      x = Prelu<Simd, small_slopes>(Simd::Add(x, Simd::Load(place.shortcut + i)), slope);
      if constexpr (scaled) x = Simd::Add(Simd::Multiply(x, scale), shift);
      const typename Simd::Mask sign = Simd::Less(x, limit);
      if constexpr (has_residual) x = Simd::Add(x, Simd::Load(place.residual + i));
      Simd::Store(place.output + i, x);
      return sign;
    }
  };

  ProjectionTarget<has_signs> target;
  const Projection& table;

  Column At(size_t unit) const {
    const Float none = Simd::Set(0.0f);
    return {Simd::Load(table.multiplier + unit),
            Simd::Load(table.bias + unit),
            Simd::Load(table.slope + unit),
            scaled ? Simd::Load(table.scale + unit) : none,
            scaled ? Simd::Load(table.shift + unit) : none,
            has_signs ? Simd::Load(table.sign_limit + unit) : none};
  }
};

struct ContextTarget {
  static constexpr bool kIsPadded = true;
  static constexpr bool kHasSigns = true;
  struct Place {
    const float* query;
    const float* shortcut;
    float* output;
  };

  const float* query;
  const float* const* shortcuts;
  size_t first_unit;
  float* output;
  size_t stride;
  BitRows signs;

  Place At(size_t row, size_t unit) const {
    const size_t i = row * stride + unit;
    return {query + i, shortcuts[row] + first_unit + unit, output + i};
  }
};

template <typename Simd, bool small_slopes>
struct ContextOutput {
  struct Column {
    typename Simd::Int offset;
    typename Simd::Float scale, bias, slope, limit;

    typename Simd::Mask Store(const ContextTarget::Place& place, size_t i, typename Simd::Int count) const {
      auto x = Simd::Add(Simd::Multiply(Simd::ToFloat(Simd::Subtract(count, offset)), scale), bias);
      x = Simd::Add(Simd::Add(x, Simd::Load(place.query + i)), Simd::Load(place.shortcut + i));
      x = Prelu<Simd, small_slopes>(x, slope);
      Simd::Store(place.output + i, x);
      return Simd::Less(x, limit);
    }
  };

  ContextTarget target;
  const Context& table;

  Column At(size_t unit) const {
    return {Simd::Load(table.offset + unit), Simd::Load(table.scale + unit), Simd::Load(table.bias + unit),
            Simd::Load(table.slope + unit), Simd::Load(table.sign_limit + unit)};
  }
};

// An Isa has a Simd and a Tile with the static constants kUnits, kWordGroup, kRows (a power of two or 7), kBlocks (1 or 2),
// kHiddenUnits and kPushesSigns, and
//
//   template <int rows, int vectors, int constant_words, bool interleaved>
//   static void Count(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words,
//                     Simd::Int (&counts)[rows][vectors]);
//
// for kRows and all smaller powers of two, for the vectors of 1 and kBlocks blocks of kUnits units and of kHiddenUnits units;
// where `constant_words` isn't 0, it is the number of words. If kInterleavedSize isn't 0, kRows rows may be
// interleaved; StoreInterleaved(to, word) writes one word of them. StoreBytes(to, counts) writes the counts of a tile's row
// as bytes. StoreMasks(masks, bits, i) sets the bits from i on, in order, for the values of a tile's row, of hidden units
// or of a word. PackBytesBelow is that of KernelSet. SumExponentials gives for each row the least of its counts, and the
// sum of the Probabilities' exponentials for each count minus that; beyond the table, it uses the table's last entry. It may
// write kMaxRows of both.

// Interleaves every kRows rows: the first word of each row, then the second word of each row and so on, each as
// kInterleavedSize words, as the tile's loop needs them. Only a few rows fit at a time.
constexpr size_t kMaxInterleavedWords = 1024;
template <typename Isa>
bool CanInterleave(const Rows& rows, size_t words) {
  return words % 2 == 0 && rows.count * words <= kMaxInterleavedWords;
}

template <typename Isa>
void Interleave(const Rows& rows, size_t words, uint32_t* output) {
  constexpr int height = Isa::Tile::kRows;
  for (size_t row = 0; row + height <= rows.count; row += height) {
    const uint32_t* from = rows.data + row * rows.stride;
    for (size_t word = 0; word < words; ++word, ++from) {
      Unroll<height>([&](int r) BINARYVIT_INLINE {
        Isa::Tile::StoreInterleaved(output, from[r * rows.stride]);
        output += Isa::Tile::kInterleavedSize;
      });
    }
  }
}

template <typename Isa, int rows, int blocks, int constant_words, bool interleaved, typename Output>
inline BINARYVIT_INLINE void StoreTile(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words,
                                       const Output& output, size_t row, size_t unit) {
  using Simd = typename Isa::Simd;
  constexpr int vectors = blocks * Isa::Tile::kUnits / Simd::kLanes;
  typename Simd::Int counts[rows][vectors];
  Hide<Simd>(stride);
  Isa::Tile::template Count<rows, vectors, constant_words, interleaved>(activations, stride, weights, words, counts);
  auto target = output.target;
  Hide<Simd>(target.stride);
  const auto place = [&](int r) BINARYVIT_INLINE {
    Hide<Simd>(row);
    return target.At(row + r, unit);
  };
  // Vector by vector, so that few constants are in registers at a time.
  if constexpr (decltype(output.target)::kHasSigns) {
    typename Simd::Mask masks[rows][vectors];
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      const auto column = output.At(unit + v * Simd::kLanes);
      Unroll<rows>([&](int r) BINARYVIT_INLINE { masks[r][v] = column.Store(place(r), v * Simd::kLanes, counts[r][v]); });
    });
    BitRows signs = target.signs;
    Hide<Simd>(signs.stride);
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Isa::template StoreMasks<vectors>(masks[r], signs.data + (row + r) * signs.stride, unit);
    });
  } else if constexpr (std::is_same_v<Output, ByteOutput>) {
    Unroll<rows>([&](int r) BINARYVIT_INLINE { Isa::StoreBytes(place(r), counts[r]); });
  } else {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      const auto column = output.At(unit + v * Simd::kLanes);
      Unroll<rows>([&](int r) BINARYVIT_INLINE { column.Store(place(r), v * Simd::kLanes, counts[r][v]); });
    });
  }
}

// For a block with more units than rows have room for: the tile writes to a buffer, from which the existing units are
// copied.
template <typename Isa, int rows, int blocks, typename Output>
__attribute__((noinline)) void RunEdge(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words,
                                       const Output& output, size_t row, size_t unit, size_t units) {
  constexpr size_t width = blocks * Isa::Tile::kUnits;
  using Value = typename decltype(Output::target)::Value;
  alignas(kAlignment) Value edge[rows * width];
  Output beside = output;
  beside.target = {edge, width, unit};
  StoreTile<Isa, rows, blocks, 0, false>(activations, stride, weights, words, beside, 0, unit);
  for (int r = 0; r < rows; ++r) {
    std::memcpy(output.target.At(row + r, unit), edge + r * width, (units - unit) * sizeof(Value));
  }
}

// Weights of this many words don't stay in the first caches from one task to the next. Then those of the next block are
// fetched while this one is computed; the processor itself looks ahead only within a page of memory.
constexpr size_t kLargeWeights = 8192;
inline BINARYVIT_INLINE void Prefetch(const uint32_t* weights, size_t words) {
  for (size_t i = 0; i < words; i += kAlignment / sizeof(uint32_t)) __builtin_prefetch(weights + i);
}

// Weights of a block stay in the first cache while all rows pass. `interleaved` is a copy of the rows, or null.
template <typename Isa, int blocks, int constant_words, typename Output>
void ForEachRowTile(const Rows& rows, const uint32_t* interleaved, const uint32_t* weights, size_t words,
                    const Output& shared, size_t unit, size_t units) {
  const Output output = shared;  // nothing that is stored can change it
  constexpr bool padded = decltype(Output::target)::kIsPadded;
  constexpr int most = Isa::Tile::kRows;
  const bool fits = padded || unit + blocks * Isa::Tile::kUnits <= units;
  size_t done = 0;
  if constexpr (Isa::Tile::kInterleavedSize > 0) {
    for (; fits && interleaved && done + most <= rows.count; done += most, interleaved += most * words * Isa::Tile::kInterleavedSize) {
      StoreTile<Isa, most, blocks, constant_words, true>(interleaved, rows.stride, weights, words, output, done, unit);
    }
  }
  ForRowTiles<most>(rows.count - done, [&](size_t row, auto height) BINARYVIT_INLINE {
    row += done;
    const uint32_t* activations = rows.data + row * rows.stride;
    if (fits) {  // smaller tiles are rare
      constexpr int words_of_tile = height == most ? constant_words : 0;
      StoreTile<Isa, height, blocks, words_of_tile, false>(activations, rows.stride, weights, words, output, row, unit);
    } else if constexpr (!padded) {
      RunEdge<Isa, height, blocks>(activations, rows.stride, weights, words, output, row, unit, units);
    }
  });
}

// Calls body with an integral constant: the number of words if code is unrolled for it, else 0.
template <typename Body>
inline BINARYVIT_INLINE void ForWords(size_t words, const Body& body) {
  switch (words) {  // those of 64, 128, 256 and 512 channels
    case 2:
      return body(std::integral_constant<int, 2>());
    case 4:
      return body(std::integral_constant<int, 4>());
    case 8:
      return body(std::integral_constant<int, 8>());
    case 16:
      return body(std::integral_constant<int, 16>());
    default:
      return body(std::integral_constant<int, 0>());
  }
}

template <typename Isa, int constant_words, typename Output>
void ForEachTileOf(const Rows& rows, const Weights& weights, const Output& output) {
  using Tile = typename Isa::Tile;
  constexpr int blocks = constant_words > 0 ? 1 : Tile::kBlocks;
  alignas(kAlignment) uint32_t interleaved[kMaxInterleavedWords * Tile::kInterleavedSize + 1];
  const uint32_t* copy = nullptr;
  if constexpr (Tile::kInterleavedSize > 0) {
    if (CanInterleave<Isa>(rows, weights.words)) {
      Interleave<Isa>(rows, weights.words, interleaved);
      copy = interleaved;
    }
  }

  const size_t block_size = blocks * Tile::kUnits * RoundUp(weights.words, Tile::kWordGroup);
  const bool prefetches = weights.units * weights.words >= kLargeWeights;
  const uint32_t* data = weights.data;
  size_t unit = 0;
  for (; unit + (blocks - 1) * Tile::kUnits < weights.units; unit += blocks * Tile::kUnits) {
    if (prefetches && unit + blocks * Tile::kUnits < weights.units) Prefetch(data + block_size, block_size);
    ForEachRowTile<Isa, blocks, constant_words>(rows, copy, data, weights.words, output, unit, weights.units);
    data += block_size;
  }
  if constexpr (blocks > 1) {
    if (unit < weights.units) {
      ForEachRowTile<Isa, 1, constant_words>(rows, copy, data, weights.words, output, unit, weights.units);
    }
  }
}

template <typename Isa, typename Output>
void ForEachTile(const Rows& rows, const Weights& weights, const Output& output) {
  if constexpr (Isa::Tile::kUnrollsWords && decltype(Output::target)::kIsPadded) {
    ForWords(weights.words, [&](auto words) { ForEachTileOf<Isa, words>(rows, weights, output); });
  } else {
    ForEachTileOf<Isa, 0>(rows, weights, output);
  }
}

// The entry points of a KernelSet.
template <typename Isa>
void CountAll(const Rows& rows, const Weights& weights, int32_t* output, size_t stride) {
  ForEachTile<Isa>(rows, weights, CountOutput<typename Isa::Simd>{{output, stride, 0}});
}

template <typename Isa>
void CountBytesAll(const Rows& rows, const Weights& weights, uint8_t* output, size_t stride) {
  ForEachTile<Isa>(rows, weights, ByteOutput{{output, stride, 0}});
}

template <typename Isa>
void MultiplyAll(const Rows& rows, const Weights& weights, const Affine& affine, float* output, size_t stride) {
  using Simd = typename Isa::Simd;
  if (affine.clamped) {
    ForEachTile<Isa>(rows, weights, AffineOutput<Simd, true>{{output, stride, 0}, affine});
  } else {
    ForEachTile<Isa>(rows, weights, AffineOutput<Simd, false>{{output, stride, 0}, affine});
  }
}

template <typename Isa>
void ProjectAll(const Rows& rows, const Weights& weights, const Projection& table, const float* shortcut,
                const float* residual, float* output, size_t stride, const BitRows& signs) {
  using Simd = typename Isa::Simd;
  const ProjectionTarget<false> target = {shortcut, residual ? residual : shortcut, output, stride, {}};
  ForSlopes(table.small_slopes, [&](auto small) {
    if (table.sign_limit) {
      const ProjectionTarget<true> signed_target = {shortcut, target.residual, output, stride, signs};
      if (residual) {
        ForEachTile<Isa>(rows, weights, ProjectionOutput<Simd, small, true, false, true>{signed_target, table});
      } else {
        ForEachTile<Isa>(rows, weights, ProjectionOutput<Simd, small, true, false, false>{signed_target, table});
      }
    } else if (!table.scale) {
      ForEachTile<Isa>(rows, weights, ProjectionOutput<Simd, small, false, false, false>{target, table});
    } else if (!residual) {
      ForEachTile<Isa>(rows, weights, ProjectionOutput<Simd, small, false, true, false>{target, table});
    } else {
      ForEachTile<Isa>(rows, weights, ProjectionOutput<Simd, small, false, true, true>{target, table});
    }
  });
}

template <typename Isa>
void AttendAll(const Rows& rows, const Weights& weights, const Context& table, const float* query,
               const float* const* shortcuts, size_t first_unit, float* output, size_t stride, const BitRows& signs) {
  const ContextTarget target = {query, shortcuts, first_unit, output, stride, signs};
  ForSlopes(table.small_slopes, [&](auto small) {
    ForEachTile<Isa>(rows, weights, ContextOutput<typename Isa::Simd, small>{target, table});
  });
}

}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_GENERIC_PRODUCT_H_
