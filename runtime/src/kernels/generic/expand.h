// The first product of a feed-forward layer, whose hidden values never leave the registers, and the order of its shortcuts.
#ifndef BINARYVIT_KERNELS_GENERIC_EXPAND_H_
#define BINARYVIT_KERNELS_GENERIC_EXPAND_H_

#include "kernels/generic/product.h"

namespace binaryvit {

// Where the signs of the hidden values of a tile's rows go, unit by unit: as bits to memory,
template <typename Isa, int rows, int vectors>
struct StoredSigns {
  using Float = typename Isa::Simd::Float;
  uint32_t* bits;
  size_t stride;
  size_t index;  // of the unit's first bit
  typename Isa::Simd::Mask masks[vectors];

  void Add(int, int v, Float x, Float limit) { masks[v] = Isa::Simd::Less(x, limit); }
  void EndRow(int r) const { Isa::template StoreMasks<vectors>(masks, bits + static_cast<size_t>(r) * stride, index); }
  void EndUnit() { index += Isa::Tile::kHiddenUnits; }
};

// or pushed into a word of each lane, until that is full.
template <typename Isa, int rows, int vectors>
struct PushedSigns {
  using Simd = typename Isa::Simd;
  typename Simd::Int words[rows][vectors];

  void Add(int r, int v, typename Simd::Float x, typename Simd::Float limit) {
    words[r][v] = Simd::PushLess(words[r][v], x, limit);
  }
  void EndRow(int) const {}
  void EndUnit() const {}

  void Load(const uint32_t* bits, size_t stride) {
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        words[r][v] = Simd::Load(reinterpret_cast<const int32_t*>(bits + r * stride + v * Simd::kLanes));
      });
    });
  }
  void Store(uint32_t* bits, size_t stride) const {
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        Simd::Store(reinterpret_cast<int32_t*>(bits + r * stride + v * Simd::kLanes), words[r][v]);
      });
    });
  }
};

// The next `count` hidden units of each channel of a tile, for a few rows: `signs` takes their signs, and their values are
// added to the sums.
template <typename Isa, int rows, int constant_words, bool small_slopes, int vectors, typename Signs>
inline BINARYVIT_INLINE void ExpandUnits(const uint32_t* activations, size_t stride, const Hidden& hidden,
                                         const uint32_t* weights, const float* table, size_t block_size,
                                         const float* shortcuts, size_t row_of_shortcuts, size_t count, Signs& signs,
                                         typename Isa::Simd::Float (&sums)[rows][vectors]) {
  using Tile = typename Isa::Tile;
  using Simd = typename Isa::Simd;
  using Float = typename Simd::Float;
  const auto unit = [&]() BINARYVIT_INLINE {
    typename Simd::Int counts[rows][vectors];
    constexpr bool interleaved = Tile::kInterleavedSize > 0 && constant_words > 0;
    Tile::template Count<rows, vectors, constant_words, interleaved>(activations, stride, weights, hidden.words, counts);
    // Neighboring vectors are loaded one after the other: some processors have an instruction for two.
    const auto load = [&](int constant, Float (&to)[vectors]) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        to[v] = Simd::Load(table + constant * Tile::kHiddenUnits + v * Simd::kLanes);
      });
    };
    // Two steps: each needs few constants at a time, and all rows' chains of operations overlap.
    Float multiplier[vectors], bias[vectors], slope[vectors], limit[vectors], x[rows][vectors];
    load(0, multiplier), load(1, bias);
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        x[r][v] = Simd::Load(shortcuts + r * row_of_shortcuts + v * Simd::kLanes);
      });
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        const Float product = Simd::Multiply(Simd::ToFloat(counts[r][v]), multiplier[v]);
        x[r][v] = Simd::Add(Simd::Add(product, bias[v]), x[r][v]);
      });
    });
    load(2, slope), load(3, limit);
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        const Float value = Prelu<Simd, small_slopes>(x[r][v], slope[v]);
        signs.Add(r, v, value, limit[v]);
        sums[r][v] = Simd::Add(sums[r][v], value);
      });
      signs.EndRow(r);
    });
    signs.EndUnit();
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
  size_t bits_before;  // bits of the tiles before, at `bits`
};

// All hidden units of a tile of channels. Only without `constant_words` may there be more than a word has bits.
template <typename Isa, int rows, int constant_words, bool small_slopes>
inline BINARYVIT_INLINE void ExpandTile(const Hidden& hidden, const uint32_t* weights, const float* table,
                                        const ExpandedRows& to) {
  using Tile = typename Isa::Tile;
  using Simd = typename Isa::Simd;
  constexpr int vectors = Tile::kHiddenUnits / Simd::kLanes;
  const size_t expansion = hidden.expansion;
  const size_t block_size = Tile::kHiddenUnits * RoundUp(hidden.words, Tile::kWordGroup);

  typename Simd::Float sums[rows][vectors];
  Unroll<rows>([&](int r) BINARYVIT_INLINE {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE { sums[r][v] = Simd::Set(0.0f); });
  });
  const auto part = [&](size_t first, size_t count, auto& signs) BINARYVIT_INLINE {
    ExpandUnits<Isa, rows, constant_words, small_slopes, vectors>(
        to.activations, to.stride, hidden, weights + first * block_size, table + first * 4 * Tile::kHiddenUnits,
        block_size, to.shortcuts + first * hidden.period, to.row_of_shortcuts, count, signs, sums);
  };
  if constexpr (!Tile::kPushesSigns) {
    StoredSigns<Isa, rows, vectors> signs = {to.bits, to.bits_stride, to.bits_before, {}};
    part(0, expansion, signs);
  } else {
    uint32_t* bits = to.bits;
    const auto words_from = [&](size_t first, size_t count) BINARYVIT_INLINE {
      PushedSigns<Isa, rows, vectors> signs = {};
      if (to.bits_before != 0) signs.Load(bits, to.bits_stride);
      part(first, count, signs);
      signs.Store(bits, to.bits_stride);
    };
    if constexpr (constant_words > 0) {
      words_from(0, expansion);
    } else {
      for (size_t first = 0; first < expansion; first += kBitsPerWord, bits += Tile::kHiddenUnits) {
        words_from(first, expansion - first < kBitsPerWord ? expansion - first : kBitsPerWord);
      }
    }
  }
  const auto share_of_each = Simd::Set(1.0f / static_cast<float>(expansion));
  Unroll<rows>([&](int r) BINARYVIT_INLINE {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      Simd::Store(to.means + r * to.means_stride + v * Simd::kLanes, Simd::Multiply(sums[r][v], share_of_each));
    });
  });
}

// A tile of channels for `count` times as many rows as a tile has; `to` moves along.
template <typename Isa, int rows, int constant_words, bool small_slopes>
__attribute__((noinline)) void ExpandTileRows(const Hidden& hidden, const uint32_t* weights, const float* table,
                                              ExpandedRows& to, size_t count) {
  for (; count > 0; --count) {
    ExpandTile<Isa, rows, constant_words, small_slopes>(hidden, weights, table, to);
    to.activations += rows * to.stride;
    to.shortcuts += rows * to.row_of_shortcuts;
    to.means += rows * to.means_stride;
    to.bits += rows * to.bits_stride;
  }
}

template <typename Isa, int constant_words, bool small_slopes>
void ExpandWords(const Rows& rows, const Hidden& hidden, const float* shortcuts, float* means, size_t means_stride,
                 uint32_t* bits, size_t bits_stride) {
  using Tile = typename Isa::Tile;
  constexpr int height = Tile::kRows;
  const size_t row_of_shortcuts = hidden.expansion * hidden.period;
  const size_t tile_words = hidden.expansion * Tile::kHiddenUnits * RoundUp(hidden.words, Tile::kWordGroup);
  const size_t whole = rows.count / height;

  constexpr bool interleaves = Tile::kInterleavedSize > 0 && constant_words > 0;
  alignas(kAlignment) uint32_t interleaved[kMaxInterleavedWords * Tile::kInterleavedSize + 1];
  const size_t stride = interleaves ? hidden.words * Tile::kInterleavedSize : rows.stride;
  const Rows whole_rows = {interleaves ? interleaved : rows.data, stride, whole};
  if constexpr (interleaves) Interleave<Isa>(rows, hidden.words, interleaved);

  const size_t tile_bits = Tile::kPushesSigns ? hidden.expansion : hidden.expansion * Tile::kHiddenUnits;
  const size_t most_bits = Tile::kPushesSigns ? TilesPerWord(hidden.expansion) * hidden.expansion : SIZE_MAX;
  const uint32_t* weights = hidden.weights;
  const float* table = hidden.table;
  size_t shortcut = 0, bits_before = 0;
  for (size_t channel = 0; channel < hidden.channels; channel += Tile::kHiddenUnits) {
    const auto rows_from = [&](size_t row, const Rows& source) {
      return ExpandedRows{source.data + row * source.stride,
                          source.stride,
                          shortcuts + row * row_of_shortcuts + shortcut,
                          row_of_shortcuts,
                          means + row * means_stride + channel,
                          means_stride,
                          bits + row * bits_stride,
                          bits_stride,
                          bits_before};
    };
    const bool is_last = channel + Tile::kHiddenUnits >= hidden.channels;
    if (hidden.channels * hidden.expansion * hidden.words > kLargeWeights && !is_last) {
      Prefetch(weights + tile_words, tile_words);
    }
    ExpandedRows to = rows_from(0, whole_rows);
    ExpandTileRows<Isa, height, constant_words, small_slopes>(hidden, weights, table, to, whole);
    // Tiles of fewer rows are rare, so they get no code for each number of words.
    if constexpr (height > 1) {
      const size_t first = whole * height;
      const Rows rest = {rows.data + first * rows.stride, rows.stride, rows.count - first};
      ForRowTiles<(height + 1) / 2>(rest.count, [&](size_t row, auto less) {
        ExpandedRows rest_to = rows_from(first + row, rows);
        ExpandTileRows<Isa, less, 0, small_slopes>(hidden, weights, table, rest_to, 1);
      });
    }
    weights += tile_words, table += 4 * hidden.expansion * Tile::kHiddenUnits;
    shortcut += Tile::kHiddenUnits, bits_before += tile_bits;
    if (shortcut == hidden.period) shortcut = 0;
    if (bits_before == most_bits) bits_before = 0, bits += WordsFor(hidden.expansion) * Tile::kHiddenUnits;
  }
}

template <typename Isa>
void ExpandAll(const Rows& rows, const Hidden& hidden, const float* shortcuts, float* means, size_t means_stride,
               uint32_t* bits, size_t bits_stride) {
  const auto run = [&](auto words) {
    ForSlopes(hidden.small_slopes, [&](auto small) {
      ExpandWords<Isa, words, small>(rows, hidden, shortcuts, means, means_stride, bits, bits_stride);
    });
  };
  if (hidden.expansion > kBitsPerWord || !CanInterleave<Isa>(rows, hidden.words)) {
    return run(std::integral_constant<int, 0>());
  }
  ForWords(hidden.words, run);
}

// Every `expansion`-th value of a row that repeats, a vector of each at a time.
template <typename Simd, int expansion>
void DeinterleaveRow(const float* values, size_t channels, size_t period, float* shortcuts) {
  constexpr int quarters = expansion / 4;
  size_t next = 0;
  for (size_t i = 0; i < period; i += Simd::kLanes) {
    typename Simd::Float every_fourth[quarters][4];
    Unroll<quarters>([&](int part) BINARYVIT_INLINE {
      Simd::LoadQuarters(values + next, every_fourth[part]);
      next += 4 * Simd::kLanes;
      if (next == channels) next = 0;
    });
    Unroll<4>([&](int e) BINARYVIT_INLINE {
      float* to = shortcuts + e * period + i;
      if constexpr (quarters == 1) {
        Simd::Store(to, every_fourth[0][e]);
      } else {
        typename Simd::Float even, odd;
        Simd::Deinterleave(every_fourth[0][e], every_fourth[1][e], &even, &odd);
        Simd::Store(to, even);
        Simd::Store(to + 4 * period, odd);
      }
    });
  }
}

template <typename Simd>
void DeinterleaveAll(const float* values, size_t rows, size_t channels, size_t expansion, size_t period,
                     float* shortcuts) {
  for (size_t row = 0; row < rows; ++row, values += channels, shortcuts += expansion * period) {
    if (expansion == 4) {
      DeinterleaveRow<Simd, 4>(values, channels, period, shortcuts);
    } else {
      DeinterleaveRow<Simd, 8>(values, channels, period, shortcuts);
    }
  }
}

}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_GENERIC_EXPAND_H_
