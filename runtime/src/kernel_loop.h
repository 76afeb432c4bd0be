// The kernels in terms of a processor's vectors: products cover rows and units with tiles, and what becomes of the counts is
// computed while they are in registers. Everything here is instantiated with types local to one source file, so that no
// function compiled for one instruction set is linked into another.
#ifndef BINARYVIT_KERNEL_LOOP_H_
#define BINARYVIT_KERNEL_LOOP_H_

#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels.h"

#define BINARYVIT_INLINE __attribute__((always_inline))

namespace binaryvit {

// Calls body(0) to body(count - 1), each inlined with its constant: compilers keep an array in registers only if its indices
// are constants early on.
template <typename Body, int... i>
inline BINARYVIT_INLINE void UnrollSequence(const Body& body, std::integer_sequence<int, i...>) {
  (body(i), ...);
}

template <int count, typename Body>
inline BINARYVIT_INLINE void Unroll(const Body& body) {
  UnrollSequence(body, std::make_integer_sequence<int, count>());
}

// Calls body(first index, std::integral_constant<int, rows>) for all of `count` rows: `most` at a time, a power of two up to
// 8, and then for what is left by smaller powers.
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

// A Simd has the types Float and Int, vectors of kLanes 32-bit values, and their operations: see kernels_scalar.cc.
//
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

// An output takes the counts of a tile. At(unit) gives a column with the constants of the units of a vector, whose
// Store(place, i, counts) computes what belongs i values behind a place; target.At(row, unit) gives the place.

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

  RealRows shortcut;
  RealRows residual;
  float* output;
  size_t stride;
  BitRows signs;

  Place At(size_t row, size_t unit) const {
    return {shortcut.data + row * shortcut.stride + unit, residual.data + row * residual.stride + unit,
            output + row * stride + unit};
  }
};

template <typename Simd, bool has_signs, bool scaled, bool has_residual>
struct ProjectionOutput {
  using Float = typename Simd::Float;
  struct Column {
    Float multiplier, bias, slope, scale, shift, threshold;

    typename Simd::Mask Store(const typename ProjectionTarget<has_signs>::Place& place, size_t i,
                              typename Simd::Int count) const {
      Float x = Simd::Add(Simd::Multiply(Simd::ToFloat(count), multiplier), bias);
      x = Simd::Prelu(Simd::Add(x, Simd::Load(place.shortcut + i)), slope);
      if constexpr (scaled) x = Simd::Add(Simd::Multiply(x, scale), shift);
      if constexpr (has_residual) x = Simd::Add(x, Simd::Load(place.residual + i));
      Simd::Store(place.output + i, x);
      return Simd::IsNegative(Simd::Add(x, threshold));
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
            has_signs ? Simd::Load(table.sign_threshold + unit) : none};
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

  RealRows query;
  const float* const* shortcuts;
  size_t first_unit;
  float* output;
  size_t stride;
  BitRows signs;

  Place At(size_t row, size_t unit) const {
    return {query.data + row * query.stride + unit, shortcuts[row] + first_unit + unit, output + row * stride + unit};
  }
};

template <typename Simd>
struct ContextOutput {
  struct Column {
    typename Simd::Int offset;
    typename Simd::Float scale, bias, slope, threshold;

    typename Simd::Mask Store(const ContextTarget::Place& place, size_t i, typename Simd::Int count) const {
      auto x = Simd::Add(Simd::Multiply(Simd::ToFloat(Simd::Subtract(count, offset)), scale), bias);
      x = Simd::Add(Simd::Add(x, Simd::Load(place.query + i)), Simd::Load(place.shortcut + i));
      x = Simd::Prelu(x, slope);
      Simd::Store(place.output + i, x);
      return Simd::IsNegative(Simd::Add(x, threshold));
    }
  };

  ContextTarget target;
  const Context& table;

  Column At(size_t unit) const {
    return {Simd::Load(table.offset + unit), Simd::Load(table.scale + unit), Simd::Load(table.bias + unit),
            Simd::Load(table.slope + unit), Simd::Load(table.sign_threshold + unit)};
  }
};

// An Isa has a Simd and a Tile with the static constants kUnits, kWordGroup, kRows (a power of two), kBlocks (1 or 2),
// kHiddenUnits and kHiddenRows, and
//
//   template <int rows, int vectors, int constant_words, bool interleaved>
//   static void Count(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words,
//                     Simd::Int (&counts)[rows][vectors]);
//
// for all powers of two up to kRows, for the vectors of 1 and kBlocks blocks of kUnits units and of kHiddenUnits units;
// where `constant_words` isn't 0, it is the number of words. In sets
// with kInterleaves, kRows rows may have come through Interleave. PackMasks(words, bits, mask) sets the bits of words from
// mask(i), the Simd's Mask of the values from i on;
// StoreMasks(masks, bits, i) does so for the masks of a tile's values from i on, tile by tile.
// Interleaved are, of every kRows rows, two words of each row, then the next two words of each row. A few rows at a time.
constexpr size_t kMostInterleavedWords = 2048;
template <typename Isa>
bool CanInterleave(const Rows& rows, size_t words) {
  return words % 2 == 0 && rows.count * words <= kMostInterleavedWords;
}

template <typename Isa>
void Interleave(const Rows& rows, size_t words, uint32_t* output) {
  constexpr size_t height = Isa::Tile::kRows;
  for (size_t row = 0; row + height <= rows.count; row += height) {
    const uint32_t* from = rows.data + row * rows.stride;
    for (size_t word = 0; word < words; word += 2, from += 2) {
      for (size_t r = 0; r < height; ++r, output += 2) {
        std::memcpy(output, from + r * rows.stride, 2 * sizeof(uint32_t));
      }
    }
  }
}

template <typename Isa, int rows, int blocks, bool interleaved, typename Output>
inline BINARYVIT_INLINE void StoreTile(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words, const Output& output,
               size_t row, size_t unit) {
  using Simd = typename Isa::Simd;
  constexpr int vectors = blocks * Isa::Tile::kUnits / Simd::kLanes;
  typename Simd::Int counts[rows][vectors];
  Isa::Tile::template Count<rows, vectors, 0, interleaved>(activations, stride, weights, words, counts);
  decltype(output.target.At(row, unit)) places[rows];
  Unroll<rows>([&](int r) BINARYVIT_INLINE { places[r] = output.target.At(row + r, unit); });
  // Vector by vector, so that few constants are in registers at a time.
  if constexpr (decltype(output.target)::kHasSigns) {
    typename Simd::Mask masks[rows][vectors];
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      const auto column = output.At(unit + v * Simd::kLanes);
      Unroll<rows>([&](int r) BINARYVIT_INLINE {
        masks[r][v] = column.Store(places[r], v * Simd::kLanes, counts[r][v]);
      });
    });
    const BitRows& signs = output.target.signs;
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Isa::template StoreMasks<vectors>(masks[r], signs.data + (row + r) * signs.stride, unit);
    });
  } else {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      const auto column = output.At(unit + v * Simd::kLanes);
      Unroll<rows>([&](int r) BINARYVIT_INLINE {
        column.Store(places[r], v * Simd::kLanes, counts[r][v]);
      });
    });
  }
}

// Where a block has more units than there are, and rows have no room for them, the tile writes beside, and the rest is
// copied.
template <typename Isa, int rows, int blocks, typename Output>
__attribute__((noinline)) void RunEdge(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words,
                                       const Output& output, size_t row, size_t unit, size_t units) {
  constexpr size_t width = blocks * Isa::Tile::kUnits;
  using Value = typename decltype(Output::target)::Value;
  alignas(kAlignment) Value edge[rows * width];
  Output beside = output;
  beside.target = {edge, width, unit};
  StoreTile<Isa, rows, blocks, false>(activations, stride, weights, words, beside, 0, unit);
  for (int r = 0; r < rows; ++r) {
    std::memcpy(output.target.At(row + r, unit), edge + r * width, (units - unit) * sizeof(Value));
  }
}

// Weights of a block stay in the first cache while all rows pass. `interleaved` are the rows once more, or null.
template <typename Isa, int blocks, typename Output>
void ForEachRowTile(const Rows& rows, const uint32_t* interleaved, const uint32_t* weights, size_t words,
                    const Output& shared, size_t unit, size_t units) {
  const Output output = shared;  // nothing that is stored can change it
  constexpr bool padded = decltype(Output::target)::kIsPadded;
  constexpr int most = Isa::Tile::kRows;
  const bool fits = padded || unit + blocks * Isa::Tile::kUnits <= units;
  size_t done = 0;
  if constexpr (Isa::Tile::kInterleaves) {
    for (; fits && interleaved && done + most <= rows.count; done += most, interleaved += most * words) {
      StoreTile<Isa, most, blocks, true>(interleaved, rows.stride, weights, words, output, done, unit);
    }
  }
  ForRowTiles<most>(rows.count - done, [&](size_t row, auto height) BINARYVIT_INLINE {
    row += done;
    const uint32_t* activations = rows.data + row * rows.stride;
    if (fits) {
      StoreTile<Isa, height, blocks, false>(activations, rows.stride, weights, words, output, row, unit);
    } else if constexpr (!padded) {
      RunEdge<Isa, height, blocks>(activations, rows.stride, weights, words, output, row, unit, units);
    }
  });
}

template <typename Isa, typename Output>
void ForEachTile(const Rows& rows, const Weights& weights, const Output& output) {
  using Tile = typename Isa::Tile;
  alignas(kAlignment) uint32_t interleaved[Tile::kInterleaves ? kMostInterleavedWords : 1];
  const bool interleaves = Tile::kInterleaves && CanInterleave<Isa>(rows, weights.words);
  if (interleaves) Interleave<Isa>(rows, weights.words, interleaved);
  const uint32_t* copy = interleaves ? interleaved : nullptr;

  const size_t block_size = Tile::kUnits * RoundUp(weights.words, Tile::kWordGroup);
  const uint32_t* data = weights.data;
  size_t unit = 0;
  for (; unit + (Tile::kBlocks - 1) * Tile::kUnits < weights.units; unit += Tile::kBlocks * Tile::kUnits) {
    ForEachRowTile<Isa, Tile::kBlocks>(rows, copy, data, weights.words, output, unit, weights.units);
    data += Tile::kBlocks * block_size;
  }
  for (; unit < weights.units; unit += Tile::kUnits, data += block_size) {
    ForEachRowTile<Isa, 1>(rows, copy, data, weights.words, output, unit, weights.units);
  }
}

// The entry points of a KernelSet.
template <typename Isa>
void CountAll(const Rows& rows, const Weights& weights, int32_t* output, size_t stride) {
  ForEachTile<Isa>(rows, weights, CountOutput<typename Isa::Simd>{{output, stride, 0}});
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
void ProjectAll(const Rows& rows, const Weights& weights, const Projection& table, const RealRows& shortcut,
                const RealRows& residual, float* output, size_t stride, const BitRows& signs) {
  using Simd = typename Isa::Simd;
  const ProjectionTarget<false> target = {shortcut, residual.data ? residual : shortcut, output, stride, {}};
  if (table.sign_threshold) {
    const ProjectionTarget<true> signed_target = {shortcut, shortcut, output, stride, signs};
    ForEachTile<Isa>(rows, weights, ProjectionOutput<Simd, true, false, false>{signed_target, table});
  } else if (!table.scale) {
    ForEachTile<Isa>(rows, weights, ProjectionOutput<Simd, false, false, false>{target, table});
  } else if (!residual.data) {
    ForEachTile<Isa>(rows, weights, ProjectionOutput<Simd, false, true, false>{target, table});
  } else {
    ForEachTile<Isa>(rows, weights, ProjectionOutput<Simd, false, true, true>{target, table});
  }
}

template <typename Isa>
void AttendAll(const Rows& rows, const Weights& weights, const Context& table, const RealRows& query,
               const float* const* shortcuts, size_t first_unit, float* output, size_t stride, const BitRows& signs) {
  const ContextTarget target = {query, shortcuts, first_unit, output, stride, signs};
  ForEachTile<Isa>(rows, weights, ContextOutput<typename Isa::Simd>{target, table});
}

// Hidden units `first` to `last` - 1 of each channel of a tile, for a few rows: their sign bits are pushed into a word of
// each lane, and their values added to the sums.
template <typename Isa, int rows, int constant_words, int vectors>
inline BINARYVIT_INLINE void ExpandUnits(const uint32_t* activations, size_t stride, const Hidden& hidden,
                                         const uint32_t* weights, const float* table, size_t block_size,
                                         const float* shortcuts, size_t row_of_shortcuts, size_t count,
                                         typename Isa::Simd::Int (&pushed)[rows][vectors],
                                         typename Isa::Simd::Float (&sums)[rows][vectors]) {
  using Tile = typename Isa::Tile;
  using Simd = typename Isa::Simd;
  using Float = typename Simd::Float;
  const auto unit = [&]() BINARYVIT_INLINE {
    typename Simd::Int counts[rows][vectors];
    constexpr bool interleaved = Tile::kInterleaves && constant_words > 0;
    Tile::template Count<rows, vectors, constant_words, interleaved>(activations, stride, weights, hidden.words, counts);
    // Neighbouring vectors are loaded one after the other: some processors have an instruction for two.
    Float constants[4][vectors];
    Unroll<4>([&](int i) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        constants[i][v] = Simd::Load(table + i * Tile::kHiddenUnits + v * Simd::kLanes);
      });
    });
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Float shortcut[vectors];
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        shortcut[v] = Simd::Load(shortcuts + r * row_of_shortcuts + v * Simd::kLanes);
      });
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        Float x = Simd::Add(Simd::Multiply(Simd::ToFloat(counts[r][v]), constants[0][v]), constants[1][v]);
        x = Simd::Prelu(Simd::Add(x, shortcut[v]), constants[2][v]);
        pushed[r][v] = Simd::PushSign(pushed[r][v], Simd::Add(x, constants[3][v]));
        sums[r][v] = Simd::Add(sums[r][v], x);
      });
    });
    weights += block_size, table += 4 * Tile::kHiddenUnits, shortcuts += hidden.period;
  };
  for (size_t pairs = count / 2; pairs > 0; --pairs) {  // two at a time need fewer moves between registers
    unit();
    unit();
  }
  if (count % 2 != 0) unit();
}

// Where a tile's rows are read and written: the first one's, and how far it is to the next one's.
struct ExpandedRows {
  const uint32_t* activations;
  size_t stride;
  const float* shortcuts;
  size_t row_of_shortcuts;
  float* means;
  size_t means_stride;
  uint32_t* bits;
  size_t bits_stride;
};

// All hidden units of a tile of channels. Only without `constant_words` may there be more than a word has bits.
template <typename Isa, int rows, int constant_words>
inline BINARYVIT_INLINE void ExpandTile(const Hidden& hidden, const uint32_t* weights, const float* table,
                                        bool begins_words, const ExpandedRows& to) {
  using Tile = typename Isa::Tile;
  using Simd = typename Isa::Simd;
  constexpr int vectors = Tile::kHiddenUnits / Simd::kLanes;
  const size_t expansion = hidden.expansion;
  const size_t block_size = Tile::kHiddenUnits * RoundUp(hidden.words, Tile::kWordGroup);

  typename Simd::Float sums[rows][vectors];
  Unroll<rows>([&](int r) BINARYVIT_INLINE {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE { sums[r][v] = Simd::Set(0.0f); });
  });
  const auto part = [&](size_t first, size_t count, uint32_t* bits) BINARYVIT_INLINE {
    typename Simd::Int pushed[rows][vectors];
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        const auto* word = reinterpret_cast<const int32_t*>(bits + r * to.bits_stride + v * Simd::kLanes);
        pushed[r][v] = begins_words ? Simd::Set(int32_t{0}) : Simd::Load(word);
      });
    });
    ExpandUnits<Isa, rows, constant_words, vectors>(
        to.activations, to.stride, hidden, weights + first * block_size, table + first * 4 * Tile::kHiddenUnits,
        block_size, to.shortcuts + first * hidden.period, to.row_of_shortcuts, count, pushed, sums);
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        Simd::Store(reinterpret_cast<int32_t*>(bits + r * to.bits_stride + v * Simd::kLanes), pushed[r][v]);
      });
    });
  };
  if constexpr (constant_words > 0) {
    part(0, expansion, to.bits);
  } else {
    uint32_t* bits = to.bits;
    for (size_t first = 0; first < expansion; first += kBitsPerWord, bits += Tile::kHiddenUnits) {
      part(first, expansion - first < kBitsPerWord ? expansion - first : kBitsPerWord, bits);
    }
  }
  const auto share_of_each = Simd::Set(1.0f / static_cast<float>(expansion));
  Unroll<rows>([&](int r) BINARYVIT_INLINE {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      Simd::Store(to.means + r * to.means_stride + v * Simd::kLanes, Simd::Multiply(sums[r][v], share_of_each));
    });
  });
}

// A tile of channels for `count` times as many rows as a tile has.
template <typename Isa, int rows, int constant_words>
__attribute__((noinline)) void ExpandTileRows(const Hidden& hidden, const uint32_t* weights, const float* table,
                                              bool begins_words, ExpandedRows to, size_t count) {
  for (; count > 0; --count) {
    ExpandTile<Isa, rows, constant_words>(hidden, weights, table, begins_words, to);
    to.activations += rows * to.stride;
    to.shortcuts += rows * to.row_of_shortcuts;
    to.means += rows * to.means_stride;
    to.bits += rows * to.bits_stride;
  }
}

template <typename Isa, int constant_words>
void ExpandWords(const Rows& rows, const Hidden& hidden, const float* shortcuts, float* means, size_t means_stride,
                 uint32_t* bits, size_t bits_stride) {
  using Tile = typename Isa::Tile;
  constexpr int height = Tile::kHiddenRows;
  const size_t row_of_shortcuts = hidden.expansion * hidden.period, share = TilesPerWord(hidden.expansion);
  const size_t block_size = Tile::kHiddenUnits * RoundUp(hidden.words, Tile::kWordGroup);
  const size_t whole = rows.count / height;

  constexpr bool interleaves = Tile::kInterleaves && constant_words > 0;
  static_assert(!interleaves || height == Tile::kRows, "Interleave takes that many");
  alignas(kAlignment) uint32_t interleaved[interleaves ? kMostInterleavedWords : 1];
  const Rows whole_rows = {interleaves ? interleaved : rows.data, interleaves ? hidden.words : rows.stride, whole};
  if constexpr (interleaves) Interleave<Isa>(rows, hidden.words, interleaved);

  for (size_t tile = 0; tile < hidden.channels / Tile::kHiddenUnits; ++tile) {
    const uint32_t* weights = hidden.weights + tile * hidden.expansion * block_size;
    const float* table = hidden.table + 4 * tile * hidden.expansion * Tile::kHiddenUnits;
    const bool begins_words = tile % share == 0;
    const auto rows_from = [&](size_t row, const Rows& source) {
      return ExpandedRows{source.data + row * source.stride,
                          source.stride,
                          shortcuts + row * row_of_shortcuts + tile * Tile::kHiddenUnits % hidden.period,
                          row_of_shortcuts,
                          means + row * means_stride + tile * Tile::kHiddenUnits,
                          means_stride,
                          bits + row * bits_stride + tile / share * WordsFor(hidden.expansion) * Tile::kHiddenUnits,
                          bits_stride};
    };
    ExpandTileRows<Isa, height, constant_words>(hidden, weights, table, begins_words, rows_from(0, whole_rows), whole);
    // Tiles of fewer rows are few: code for them needn't be there for each number of words.
    if constexpr (height > 1) {
      const size_t first = whole * height;
      const Rows rest = {rows.data + first * rows.stride, rows.stride, rows.count - first};
      ForRowTiles<height / 2>(rest.count, [&](size_t row, auto less) {
        ExpandTileRows<Isa, less, 0>(hidden, weights, table, begins_words, rows_from(first + row, rows), 1);
      });
    }
  }
}

template <typename Isa>
void ExpandAll(const Rows& rows, const Hidden& hidden, const float* shortcuts, float* means, size_t means_stride,
               uint32_t* bits, size_t bits_stride) {
  const auto run = [&](auto words) {
    ExpandWords<Isa, words>(rows, hidden, shortcuts, means, means_stride, bits, bits_stride);
  };
  if (hidden.expansion > kBitsPerWord || !CanInterleave<Isa>(rows, hidden.words)) {
    return run(std::integral_constant<int, 0>());
  }
  switch (hidden.words) {  // those of 64, 128, 256 and 512 channels
    case 2:
      return run(std::integral_constant<int, 2>());
    case 4:
      return run(std::integral_constant<int, 4>());
    case 8:
      return run(std::integral_constant<int, 8>());
    case 16:
      return run(std::integral_constant<int, 16>());
    default:
      return run(std::integral_constant<int, 0>());
  }
}

// Splits each of `arrays` arrays of `length` values into its even and odd ones: array i to array i and array i + arrays. An
// array of one tile becomes two that repeat their values.
template <typename Isa>
void Halve(const float* values, size_t arrays, size_t length, float* output) {
  using Simd = typename Isa::Simd;
  constexpr size_t tile = Isa::Tile::kHiddenUnits;
  const bool repeats = length == tile;
  const size_t half = repeats ? length : length / 2;
  for (size_t array = 0; array < arrays; ++array, values += length) {
    float* even_to = output + array * half;
    float* odd_to = even_to + arrays * half;
    typename Simd::Float even, odd;
    if (repeats && tile == Simd::kLanes) {
      const auto both = Simd::Load(values);
      Simd::Deinterleave(both, both, &even, &odd);
      Simd::Store(even_to, even);
      Simd::Store(odd_to, odd);
      continue;
    }
    for (size_t i = 0; i < length; i += 2 * Simd::kLanes) {
      Simd::Deinterleave(Simd::Load(values + i), Simd::Load(values + i + Simd::kLanes), &even, &odd);
      Simd::Store(even_to + i / 2, even);
      Simd::Store(odd_to + i / 2, odd);
      if (repeats) Simd::Store(even_to + tile / 2 + i / 2, even), Simd::Store(odd_to + tile / 2 + i / 2, odd);
    }
  }
}

template <typename Simd>
void Quarter(const float* values, size_t length, float* output) {
  const size_t quarter = length / 4;
  typename Simd::Float quarters[4];
  for (size_t i = 0; i < quarter; i += Simd::kLanes) {
    Simd::LoadQuarters(values + 4 * i, quarters);
    Unroll<4>([&](int q) BINARYVIT_INLINE { Simd::Store(output + q * quarter + i, quarters[q]); });
  }
}

template <typename Isa>
void DeinterleaveAll(const float* values, size_t channels, size_t expansion, float* shortcuts, float* scratch) {
  constexpr size_t tile = Isa::Tile::kHiddenUnits;
  size_t arrays = 1, length = channels;
  if (expansion == 1) std::memcpy(shortcuts, values, channels * sizeof(float));
  while (arrays < expansion) {
    const bool quarters = arrays == 1 && expansion % 4 == 0 && channels % (4 * tile) == 0;
    const size_t factor = quarters ? 4 : 2;
    // So that the last step ends in `shortcuts`: the steps after this one halve.
    bool even = true;
    for (size_t n = arrays * factor; n < expansion; n *= 2) even = !even;
    float* to = even ? shortcuts : scratch;
    if (quarters) {
      Quarter<typename Isa::Simd>(values, length, to);
    } else {
      Halve<Isa>(values, arrays, length, to);
    }
    if (length != tile) length /= factor;
    arrays *= factor;
    values = to;
  }
}

// Scales a row and packs the signs of the shifted values.
template <typename Isa>
void ScaleAndPack(const float* values, const float* factors, const float* thresholds, size_t words, float* scaled,
                  uint32_t* bits) {
  using Simd = typename Isa::Simd;
  Isa::PackMasks(words, bits, [&](size_t i) BINARYVIT_INLINE {
    const auto x = Simd::Multiply(Simd::Load(values + i), Simd::Load(factors + i));
    Simd::Store(scaled + i, x);
    return Simd::IsNegative(Simd::Add(x, Simd::Load(thresholds + i)));
  });
}

template <typename Isa>
void PackSigns(const float* values, size_t words, uint32_t* bits) {
  using Simd = typename Isa::Simd;
  Isa::PackMasks(words, bits, [&](size_t i) BINARYVIT_INLINE { return Simd::IsNegative(Simd::Load(values + i)); });
}

template <typename Isa>
void PackShifted(const float* values, const float* thresholds, size_t words, uint32_t* bits) {
  using Simd = typename Isa::Simd;
  Isa::PackMasks(words, bits, [&](size_t i) BINARYVIT_INLINE {
    return Simd::IsNegative(Simd::Add(Simd::Load(values + i), Simd::Load(thresholds + i)));
  });
}

template <typename Isa>
void PackAtMost(const int32_t* counts, int32_t limit, size_t words, uint32_t* bits) {
  using Simd = typename Isa::Simd;
  const typename Simd::Int above = Simd::Set(limit + 1);
  Isa::PackMasks(words, bits, [&](size_t i) BINARYVIT_INLINE {
    return Simd::IsNegative(Simd::Subtract(Simd::Load(counts + i), above));
  });
}

// One vector of channels along the row: weights and the neighbours to the left and right stay in registers, and `block`
// positions share the moves of the latter.
template <typename Simd, int reach>
void CrossColumn(const CrossRow& row, size_t channel, float* output) {
  using Float = typename Simd::Float;
  constexpr int block = 4;
  const size_t step = row.channels, width = row.width;
  const float* above[reach];
  const float* below[reach];
  Float vertical[reach], horizontal[reach], window[2 * reach + block];
  const Float center = Simd::Load(row.weights + channel), row_edge = Simd::Load(row.row_edge + channel);
  const float* source = row.center + channel;
  const float* column_edge = row.column_edges + channel;
  output += channel;
  Unroll<reach>([&](int d) BINARYVIT_INLINE {
    above[d] = row.above[d] + channel;
    below[d] = row.below[d] + channel;
    vertical[d] = Simd::Load(row.weights + (1 + d) * step + channel);
    horizontal[d] = Simd::Load(row.weights + (1 + reach + d) * step + channel);
    window[d] = Simd::Set(0.0f);
  });
  const auto load = [&](size_t x) BINARYVIT_INLINE {
    return x < width ? Simd::Load(source + x * step) : Simd::Set(0.0f);
  };
  Unroll<reach>([&](int d) BINARYVIT_INLINE { window[reach + d] = load(static_cast<size_t>(d)); });
  const auto run = [&](auto residual) BINARYVIT_INLINE {
    const auto position = [&](int i, size_t at) BINARYVIT_INLINE {
      Float sum = Simd::Multiply(window[reach + i], center);
      Unroll<reach>([&](int d) BINARYVIT_INLINE {
        const Float pair = Simd::Add(Simd::Load(above[d] + at), Simd::Load(below[d] + at));
        sum = Simd::Add(sum, Simd::Multiply(pair, vertical[d]));
      });
      Unroll<reach>([&](int d) BINARYVIT_INLINE {
        const Float pair = Simd::Add(window[reach + i - 1 - d], window[reach + i + 1 + d]);
        sum = Simd::Add(sum, Simd::Multiply(pair, horizontal[d]));
      });
      sum = Simd::Add(sum, Simd::Add(row_edge, Simd::Load(column_edge + at)));
      if constexpr (residual) sum = Simd::Add(sum, window[reach + i]);
      Simd::Store(output + at, sum);
    };
    size_t x = 0, at = 0;
    for (; x + block + reach <= width; x += block, at += block * step) {
      Unroll<block>([&](int i) BINARYVIT_INLINE {
        window[2 * reach + i] = Simd::Load(source + at + (reach + i) * step);
      });
      Unroll<block>([&](int i) BINARYVIT_INLINE { position(i, at + i * step); });
      Unroll<2 * reach>([&](int d) BINARYVIT_INLINE { window[d] = window[d + block]; });
    }
    for (; x < width; ++x, at += step) {
      window[2 * reach] = load(x + reach);
      position(0, at);
      Unroll<2 * reach>([&](int d) BINARYVIT_INLINE { window[d] = window[d + 1]; });
    }
  };
  if (row.residual) {
    run(std::true_type());
  } else {
    run(std::false_type());
  }
}

// The same for any reach and one channel.
template <typename Simd>
void CrossChannel(const CrossRow& row, size_t channel, float* output) {
  for (size_t x = 0; x < row.width; ++x) {
    const size_t i = x * row.channels + channel;
    const float* weight = row.weights + channel;
    float sum = row.center[i] * *weight;
    for (size_t d = 0; d < row.vertical; ++d) sum += (row.above[d][i] + row.below[d][i]) * *(weight += row.channels);
    for (size_t d = 1; d <= row.horizontal; ++d) {
      const float left = d <= x ? row.center[i - d * row.channels] : 0;
      const float right = x + d < row.width ? row.center[i + d * row.channels] : 0;
      sum += (left + right) * *(weight += row.channels);
    }
    sum += row.row_edge[channel] + row.column_edges[i];
    output[i] = row.residual ? sum + row.center[i] : sum;
  }
}

template <typename Simd>
void CrossAll(const CrossRow& row, float* output) {
  size_t channel = 0;
  if (row.vertical == row.horizontal && row.vertical >= 1 && row.vertical <= 3) {
    for (; channel + Simd::kLanes <= row.channels; channel += Simd::kLanes) {
      if (row.vertical == 1) CrossColumn<Simd, 1>(row, channel, output);
      if (row.vertical == 2) CrossColumn<Simd, 2>(row, channel, output);
      if (row.vertical == 3) CrossColumn<Simd, 3>(row, channel, output);
    }
  }
  for (; channel < row.channels; ++channel) CrossChannel<Simd>(row, channel, output);
}

template <typename Simd>
void PoolVector(const float* values, size_t row_stride, size_t stride, size_t size, const float* factors, float* means) {
  const auto factor = Simd::Load(factors);
  auto total = Simd::Set(0.0f);
  for (size_t y = 0; y < size; ++y, values += row_stride) {
    auto sum = Simd::Multiply(Simd::Load(values), factor);
    for (size_t x = 1; x < size; ++x) sum = Simd::Add(sum, Simd::Multiply(Simd::Load(values + x * stride), factor));
    total = y == 0 ? sum : Simd::Add(total, sum);
  }
  Simd::Store(means, Simd::Multiply(total, Simd::Set(1.0f / static_cast<float>(size * size))));
}

template <typename Simd>
void PoolAll(const float* values, size_t row_stride, size_t size, const float* factors, size_t channels, float* means) {
  size_t c = 0;
  for (; c + Simd::kLanes <= channels; c += Simd::kLanes) {
    PoolVector<Simd>(values + c, row_stride, channels, size, factors + c, means + c);
  }
  for (; c < channels; ++c) {
    float total = 0;
    for (size_t y = 0; y < size; ++y) {
      const float* from = values + y * row_stride + c;
      float sum = *from * factors[c];
      for (size_t x = 1; x < size; ++x) sum += from[x * channels] * factors[c];
      total = y == 0 ? sum : total + sum;
    }
    means[c] = total * (1.0f / static_cast<float>(size * size));
  }
}

template <typename Isa>
constexpr KernelSet MakeKernelSet(const char* name) {
  using Tile = typename Isa::Tile;
  using Simd = typename Isa::Simd;
  return {name,
          Tile::kUnits,
          Tile::kWordGroup,
          Tile::kHiddenUnits,
          MultiplyAll<Isa>,
          CountAll<Isa>,
          PackSigns<Isa>,
          ProjectAll<Isa>,
          AttendAll<Isa>,
          ExpandAll<Isa>,
          DeinterleaveAll<Isa>,
          ScaleAndPack<Isa>,
          PackShifted<Isa>,
          PackAtMost<Isa>,
          CrossAll<Simd>,
          PoolAll<Simd>};
}

}  // namespace binaryvit

#endif  // BINARYVIT_KERNEL_LOOP_H_
