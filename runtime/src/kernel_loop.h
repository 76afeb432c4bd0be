// The kernels in terms of a processor's vectors: products cover rows and units with tiles, and what becomes of the counts is
// computed while they are in registers. Everything here is instantiated with types local to one source file, so that no
// function compiled for one instruction set is linked into another.
#ifndef BINARYVIT_KERNEL_LOOP_H_
#define BINARYVIT_KERNEL_LOOP_H_

#include <cstring>
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
// An output takes the counts of a tile. At(unit) gives a column with the constants of the units of a vector, whose
// Store(place, counts) computes; target.At(row, unit) gives the place.

template <typename T>
struct Target {
  using Value = T;
  static constexpr bool kIsPadded = false;

  T* data;
  size_t stride;
  size_t first_unit;  // the first one at `data`

  T* At(size_t row, size_t unit) const { return data + row * stride + (unit - first_unit); }
};

template <typename Simd>
struct CountOutput {
  struct Column {
    void Store(int32_t* to, typename Simd::Int count) const { Simd::Store(to, count); }
  };

  Target<int32_t> target;

  Column At(size_t) const { return {}; }
};

template <typename Simd, bool clamped>
struct AffineOutput {
  struct Column {
    typename Simd::Float multiplier, bias;
    typename Simd::Int clamp_min, clamp_max;

    void Store(float* to, typename Simd::Int count) const {
      if constexpr (clamped) count = Simd::Max(Simd::Min(Simd::Add(count, count), clamp_max), clamp_min);
      Simd::Store(to, Simd::Add(Simd::Multiply(Simd::ToFloat(count), multiplier), bias));
    }
  };

  Target<float> target;
  const Affine& affine;

  Column At(size_t unit) const {
    return {Simd::Load(affine.multiplier + unit), Simd::Load(affine.bias + unit), Simd::Set(affine.clamp_min),
            Simd::Set(affine.clamp_max)};
  }
};

// Where a projection reads and writes; all rows have room for whole tiles.
struct ProjectionTarget {
  static constexpr bool kIsPadded = true;
  struct Place {
    const float* shortcut;
    const float* residual;
    float* output;
  };

  RealRows shortcut;
  RealRows residual;
  float* output;
  size_t stride;

  Place At(size_t row, size_t unit) const {
    return {shortcut.data + row * shortcut.stride + unit, residual.data + row * residual.stride + unit,
            output + row * stride + unit};
  }
};

template <typename Simd, bool scaled, bool has_residual>
struct ProjectionOutput {
  using Float = typename Simd::Float;
  struct Column {
    Float multiplier, bias, slope, scale, shift;

    void Store(const ProjectionTarget::Place& place, typename Simd::Int count) const {
      Float x = Simd::Add(Simd::Multiply(Simd::ToFloat(count), multiplier), bias);
      x = Simd::Prelu(Simd::Add(x, Simd::Load(place.shortcut)), slope);
      if constexpr (scaled) x = Simd::Add(Simd::Multiply(x, scale), shift);
      if constexpr (has_residual) x = Simd::Add(x, Simd::Load(place.residual));
      Simd::Store(place.output, x);
    }
  };

  ProjectionTarget target;
  const Projection& table;

  Column At(size_t unit) const {
    const Float none = Simd::Set(0.0f);
    return {Simd::Load(table.multiplier + unit), Simd::Load(table.bias + unit), Simd::Load(table.slope + unit),
            scaled ? Simd::Load(table.scale + unit) : none, scaled ? Simd::Load(table.shift + unit) : none};
  }
};

// An Isa has a Simd and a Tile with the static constants kUnits, kWordGroup, kRows (a power of two), kBlocks (1 or 2),
// kHiddenUnits and kHiddenRows, and
//
//   template <int rows, int vectors>
//   static void Count(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words,
//                     Simd::Int (&counts)[rows][vectors]);
//
// for all powers of two up to kRows, for the vectors of 1 and kBlocks blocks of kUnits units and of kHiddenUnits units.
template <typename Isa, int rows, int blocks, typename Output>
void StoreTile(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words, const Output& output,
               size_t row, size_t unit) {
  using Simd = typename Isa::Simd;
  constexpr int vectors = blocks * Isa::Tile::kUnits / Simd::kLanes;
  typename Simd::Int counts[rows][vectors];
  Isa::Tile::template Count<rows, vectors>(activations, stride, weights, words, counts);
  decltype(output.At(unit)) columns[vectors];
  Unroll<vectors>([&](int v) BINARYVIT_INLINE { columns[v] = output.At(unit + v * Simd::kLanes); });
  Unroll<rows>([&](int r) BINARYVIT_INLINE {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      columns[v].Store(output.target.At(row + r, unit + v * Simd::kLanes), counts[r][v]);
    });
  });
}

// Where a block has more units than there are, and rows have no room for them, the tile writes beside, and the rest is
// copied.
template <typename Isa, int rows, int blocks, typename Output>
void RunTile(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words, const Output& output,
             size_t row, size_t unit, size_t units) {
  if constexpr (!decltype(Output::target)::kIsPadded) {
    constexpr size_t width = blocks * Isa::Tile::kUnits;
    if (unit + width > units) {
      using Value = typename decltype(Output::target)::Value;
      alignas(kAlignment) Value edge[rows * width];
      Output beside = output;
      beside.target = {edge, width, unit};
      StoreTile<Isa, rows, blocks>(activations, stride, weights, words, beside, 0, unit);
      for (int r = 0; r < rows; ++r) {
        std::memcpy(output.target.At(row + r, unit), edge + r * width, (units - unit) * sizeof(Value));
      }
      return;
    }
  }
  StoreTile<Isa, rows, blocks>(activations, stride, weights, words, output, row, unit);
}

// Weights of a block stay in the first cache while all rows pass.
template <typename Isa, int blocks, typename Output>
void ForEachRowTile(const Rows& rows, const uint32_t* weights, size_t words, const Output& output, size_t unit,
                    size_t units) {
  ForRowTiles<Isa::Tile::kRows>(rows.count, [&](size_t row, auto height) {
    RunTile<Isa, height, blocks>(rows.data + row * rows.stride, rows.stride, weights, words, output, row, unit, units);
  });
}

template <typename Isa, typename Output>
void ForEachTile(const Rows& rows, const Weights& weights, const Output& output) {
  using Tile = typename Isa::Tile;
  const size_t block_size = Tile::kUnits * RoundUp(weights.words, Tile::kWordGroup);
  const uint32_t* data = weights.data;
  size_t unit = 0;
  for (; unit + (Tile::kBlocks - 1) * Tile::kUnits < weights.units; unit += Tile::kBlocks * Tile::kUnits) {
    ForEachRowTile<Isa, Tile::kBlocks>(rows, data, weights.words, output, unit, weights.units);
    data += Tile::kBlocks * block_size;
  }
  for (; unit < weights.units; unit += Tile::kUnits, data += block_size) {
    ForEachRowTile<Isa, 1>(rows, data, weights.words, output, unit, weights.units);
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
                const RealRows& residual, float* output, size_t stride) {
  using Simd = typename Isa::Simd;
  if (!table.scale) {
    const ProjectionTarget target = {shortcut, shortcut, output, stride};
    ForEachTile<Isa>(rows, weights, ProjectionOutput<Simd, false, false>{target, table});
  } else if (!residual.data) {
    const ProjectionTarget target = {shortcut, shortcut, output, stride};
    ForEachTile<Isa>(rows, weights, ProjectionOutput<Simd, true, false>{target, table});
  } else {
    const ProjectionTarget target = {shortcut, residual, output, stride};
    ForEachTile<Isa>(rows, weights, ProjectionOutput<Simd, true, true>{target, table});
  }
}

// All hidden units of a tile of channels, for a few rows: sums over a channel's units stay in registers.
template <typename Isa, int rows>
void ExpandTile(const uint32_t* activations, size_t stride, const Hidden& hidden, size_t tile, const float* shortcuts,
                float* means, size_t means_stride, uint32_t* bits, size_t bits_stride) {
  using Tile = typename Isa::Tile;
  using Simd = typename Isa::Simd;
  using Float = typename Simd::Float;
  constexpr int vectors = Tile::kHiddenUnits / Simd::kLanes;
  const size_t expansion = hidden.expansion, share = TilesPerWord(expansion);
  const size_t block_size = Tile::kHiddenUnits * RoundUp(hidden.words, Tile::kWordGroup);
  const size_t row_of_shortcuts = expansion * hidden.period;
  const uint32_t* weights = hidden.weights + tile * expansion * block_size;
  size_t unit = tile * expansion * Tile::kHiddenUnits;
  shortcuts += tile * Tile::kHiddenUnits % hidden.period;
  bits += tile / share * WordsFor(expansion) * Tile::kHiddenUnits;
  const bool begins_words = tile % share == 0;

  Float sums[rows][vectors];
  Unroll<rows>([&](int r) BINARYVIT_INLINE {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE { sums[r][v] = Simd::Set(0.0f); });
  });
  for (size_t first = 0; first < expansion; first += kBitsPerWord, bits += Tile::kHiddenUnits) {
    const size_t last = expansion - first < kBitsPerWord ? expansion : first + kBitsPerWord;
    typename Simd::Int pushed[rows][vectors];
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        const auto* word = reinterpret_cast<const int32_t*>(bits + r * bits_stride + v * Simd::kLanes);
        pushed[r][v] = begins_words ? Simd::Set(int32_t{0}) : Simd::Load(word);
      });
    });
    for (size_t e = first; e < last; ++e, weights += block_size, unit += Tile::kHiddenUnits) {
      typename Simd::Int counts[rows][vectors];
      Tile::template Count<rows, vectors>(activations, stride, weights, hidden.words, counts);
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        const size_t at = unit + v * Simd::kLanes;
        const Float multiplier = Simd::Load(hidden.multiplier + at), bias = Simd::Load(hidden.bias + at);
        const Float slope = Simd::Load(hidden.slope + at), threshold = Simd::Load(hidden.threshold + at);
        const float* shortcut = shortcuts + e * hidden.period + v * Simd::kLanes;
        Unroll<rows>([&](int r) BINARYVIT_INLINE {
          Float x = Simd::Add(Simd::Multiply(Simd::ToFloat(counts[r][v]), multiplier), bias);
          x = Simd::Prelu(Simd::Add(x, Simd::Load(shortcut + r * row_of_shortcuts)), slope);
          pushed[r][v] = Simd::PushSign(pushed[r][v], Simd::Add(x, threshold));
          sums[r][v] = Simd::Add(sums[r][v], x);
        });
      });
    }
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        Simd::Store(reinterpret_cast<int32_t*>(bits + r * bits_stride + v * Simd::kLanes), pushed[r][v]);
      });
    });
  }
  const Float share_of_each = Simd::Set(1.0f / static_cast<float>(expansion));
  Unroll<rows>([&](int r) BINARYVIT_INLINE {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      float* to = means + r * means_stride + tile * Tile::kHiddenUnits + v * Simd::kLanes;
      Simd::Store(to, Simd::Multiply(sums[r][v], share_of_each));
    });
  });
}

template <typename Isa>
void ExpandAll(const Rows& rows, const Hidden& hidden, const float* shortcuts, float* means, size_t means_stride,
               uint32_t* bits, size_t bits_stride) {
  using Tile = typename Isa::Tile;
  for (size_t tile = 0; tile < hidden.channels / Tile::kHiddenUnits; ++tile) {
    ForRowTiles<Tile::kHiddenRows>(rows.count, [&](size_t row, auto height) {
      ExpandTile<Isa, height>(rows.data + row * rows.stride, rows.stride, hidden, tile,
                              shortcuts + row * hidden.expansion * hidden.period, means + row * means_stride,
                              means_stride, bits + row * bits_stride, bits_stride);
    });
  }
}

template <typename Simd>
void ScaleAll(const float* values, const float* factors, size_t count, float* output) {
  for (size_t i = 0; i < count; i += Simd::kLanes) {
    Simd::Store(output + i, Simd::Multiply(Simd::Load(values + i), Simd::Load(factors + i)));
  }
}

constexpr size_t kChunkWords = 4;  // what PackSigns takes at a time on ARM

// PackSigns of what `transform` makes of each vector, in chunks on the stack.
template <typename Isa, typename Transform>
inline BINARYVIT_INLINE void PackTransformed(size_t words, uint32_t* bits, const Transform& transform) {
  using Simd = typename Isa::Simd;
  alignas(kAlignment) float chunk[kChunkWords * kBitsPerWord];
  for (size_t word = 0; word < words; word += kChunkWords) {
    const size_t count = words - word < kChunkWords ? words - word : kChunkWords;
    for (size_t i = 0; i < count * kBitsPerWord; i += Simd::kLanes) {
      Simd::Store(chunk + i, transform(word * kBitsPerWord + i));
    }
    Isa::PackSigns(chunk, count, bits + word);
  }
}

template <typename Isa>
void PackShifted(const float* values, const float* thresholds, size_t words, uint32_t* bits) {
  using Simd = typename Isa::Simd;
  PackTransformed<Isa>(words, bits, [&](size_t i) BINARYVIT_INLINE {
    return Simd::Add(Simd::Load(values + i), Simd::Load(thresholds + i));
  });
}

template <typename Isa>
void PackAtMost(const int32_t* counts, int32_t limit, size_t words, uint32_t* bits) {
  using Simd = typename Isa::Simd;
  const typename Simd::Int above = Simd::Set(-1 - limit);  // sums are exact as floats: counts are small
  PackTransformed<Isa>(words, bits, [&](size_t i) BINARYVIT_INLINE {
    return Simd::ToFloat(Simd::Add(Simd::Load(counts + i), above));
  });
}

template <typename Simd>
void ContextAll(const int32_t* counts, const Context& table, const float* query, const float* shortcut, size_t channels,
                float* output) {
  for (size_t i = 0; i < channels; i += Simd::kLanes) {
    const auto sum = Simd::ToFloat(Simd::Subtract(Simd::Load(counts + i), Simd::Load(table.offset + i)));
    auto x = Simd::Add(Simd::Multiply(sum, Simd::Load(table.scale + i)), Simd::Load(table.bias + i));
    x = Simd::Add(Simd::Add(x, Simd::Load(query + i)), Simd::Load(shortcut + i));
    Simd::Store(output + i, Simd::Prelu(x, Simd::Load(table.slope + i)));
  }
}

// One vector of channels along the row: weights and the neighbours to the left and right stay in registers.
template <typename Simd, int reach>
void CrossColumn(const CrossRow& row, size_t channel, float* output) {
  using Float = typename Simd::Float;
  const size_t step = row.channels;
  Float vertical[reach], horizontal[reach], window[2 * reach + 1];
  const Float center = Simd::Load(row.weights + channel), row_edge = Simd::Load(row.row_edge + channel);
  Unroll<reach>([&](int d) BINARYVIT_INLINE {
    vertical[d] = Simd::Load(row.weights + (1 + d) * step + channel);
    horizontal[d] = Simd::Load(row.weights + (1 + reach + d) * step + channel);
    window[reach - 1 - d] = Simd::Set(0.0f);
  });
  Unroll<reach>([&](int d) BINARYVIT_INLINE {
    const auto x = static_cast<size_t>(d);
    window[reach + d] = x < row.width ? Simd::Load(row.center + x * step + channel) : Simd::Set(0.0f);
  });
  for (size_t x = 0, i = channel; x < row.width; ++x, i += step) {
    window[2 * reach] = x + reach < row.width ? Simd::Load(row.center + i + reach * step) : Simd::Set(0.0f);
    Float sum = Simd::Multiply(window[reach], center);
    Unroll<reach>([&](int d) BINARYVIT_INLINE {
      const Float pair = Simd::Add(Simd::Load(row.above[d] + i), Simd::Load(row.below[d] + i));
      sum = Simd::Add(sum, Simd::Multiply(pair, vertical[d]));
    });
    Unroll<reach>([&](int d) BINARYVIT_INLINE {
      const Float pair = Simd::Add(window[reach - 1 - d], window[reach + 1 + d]);
      sum = Simd::Add(sum, Simd::Multiply(pair, horizontal[d]));
    });
    sum = Simd::Add(sum, Simd::Add(row_edge, Simd::Load(row.column_edges + i)));
    if (row.residual) sum = Simd::Add(sum, window[reach]);
    Simd::Store(output + i, sum);
    Unroll<2 * reach>([&](int d) BINARYVIT_INLINE { window[d] = window[d + 1]; });
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
          Isa::PackSigns,
          ProjectAll<Isa>,
          ExpandAll<Isa>,
          ScaleAll<Simd>,
          PackShifted<Isa>,
          PackAtMost<Isa>,
          ContextAll<Simd>,
          CrossAll<Simd>};
}

}  // namespace binaryvit

#endif  // BINARYVIT_KERNEL_LOOP_H_
