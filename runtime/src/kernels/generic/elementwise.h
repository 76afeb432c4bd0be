// The kernels without products of bits: signs of values, crosses over a map, means over squares, sums and products of reals.
#ifndef BINARYVIT_KERNELS_GENERIC_ELEMENTWISE_H_
#define BINARYVIT_KERNELS_GENERIC_ELEMENTWISE_H_

#include "kernels/generic/product.h"

namespace binaryvit {

// Sets the bits of words from mask(i), the Simd's Mask of the values from i on.
template <typename Isa, typename MaskOf>
inline BINARYVIT_INLINE void PackWords(size_t words, uint32_t* bits, const MaskOf& mask) {
  using Simd = typename Isa::Simd;
  constexpr int vectors = kBitsPerWord / Simd::kLanes;
  for (size_t i = 0; i < words * kBitsPerWord; i += kBitsPerWord) {
    typename Simd::Mask masks[vectors];
    Unroll<vectors>([&](int v) BINARYVIT_INLINE { masks[v] = mask(i + v * Simd::kLanes); });
    Isa::template StoreMasks<vectors>(masks, bits, i);
  }
}

// Word by word, so that factors and limits are loaded once for all rows.
template <typename Isa>
void ScaleAndPack(const float* values, size_t rows, size_t words, const float* factors, const float* limits,
                  float* output, uint32_t* bits) {
  using Simd = typename Isa::Simd;
  constexpr int vectors = kBitsPerWord / Simd::kLanes;
  for (size_t i = 0; i < words * kBitsPerWord; i += kBitsPerWord) {
    typename Simd::Float factor[vectors], limit[vectors];
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      factor[v] = Simd::Load(factors + i + v * Simd::kLanes), limit[v] = Simd::Load(limits + i + v * Simd::kLanes);
    });
    for (size_t row = 0; row < rows; ++row) {
      const size_t first = row * words * kBitsPerWord + i;
      typename Simd::Mask masks[vectors];
      Unroll<vectors>([&](int v) BINARYVIT_INLINE {
        const auto x = Simd::Multiply(Simd::Load(values + first + v * Simd::kLanes), factor[v]);
        Simd::Store(output + first + v * Simd::kLanes, x);
        masks[v] = Simd::Less(x, limit[v]);
      });
      Isa::template StoreMasks<vectors>(masks, bits, first);
    }
  }
}

template <typename Isa>
void PackSigns(const float* values, size_t words, uint32_t* bits) {
  using Simd = typename Isa::Simd;
  PackWords<Isa>(words, bits, [&](size_t i) BINARYVIT_INLINE {
    return Simd::Less(Simd::Load(values + i), Simd::Set(0.0f));
  });
}

template <typename Isa>
void PackBelow(const float* values, const float* limits, size_t words, uint32_t* bits) {
  using Simd = typename Isa::Simd;
  PackWords<Isa>(words, bits, [&](size_t i) BINARYVIT_INLINE {
    return Simd::Less(Simd::Load(values + i), Simd::Load(limits + i));
  });
}

template <typename Isa>
void PackShifted(const float* values, const float* thresholds, size_t words, uint32_t* bits) {
  using Simd = typename Isa::Simd;
  PackWords<Isa>(words, bits, [&](size_t i) BINARYVIT_INLINE {
    return Simd::Less(Simd::Add(Simd::Load(values + i), Simd::Load(thresholds + i)), Simd::Set(0.0f));
  });
}

template <typename Isa>
void PackAtMost(const int32_t* counts, int32_t limit, size_t words, uint32_t* bits) {
  using Simd = typename Isa::Simd;
  const typename Simd::Int above = Simd::Set(limit + 1);
  PackWords<Isa>(words, bits, [&](size_t i) BINARYVIT_INLINE { return Simd::Less(Simd::Load(counts + i), above); });
}

// A vector of one value, for the values after the last whole vector. There is a type for each Simd, so that code for one
// instruction set isn't linked into another.
template <typename Simd>
struct OneLane {
  using Float = float;
  static constexpr size_t kLanes = 1;
  static Float Load(const float* from) { return *from; }
  static void LoadQuarters(const float* from, Float (&quarters)[4]) { std::memcpy(quarters, from, sizeof quarters); }
  static Float Set(float x) { return x; }
  static Float Add(Float a, Float b) { return a + b; }
  static Float Multiply(Float a, Float b) { return a * b; }
  static Float MultiplyAdd(Float a, Float b, Float c) { return __builtin_fmaf(a, b, c); }
  static Float Prelu(Float x, Float slope) { return x < 0 ? x * slope : x; }
  static void Deinterleave(Float a, Float b, Float* even, Float* odd) { *even = a, *odd = b; }
  static void Store(float* to, Float x) { *to = x; }
};

// Calls body(a Simd or OneLane, i) for all i below count, that many at a time.
template <typename Simd, typename Body>
inline BINARYVIT_INLINE void ForLanes(size_t count, const Body& body) {
  size_t i = 0;
  for (; i + Simd::kLanes <= count; i += Simd::kLanes) body(Simd(), i);
  for (; i < count; ++i) body(OneLane<Simd>(), i);
}

template <typename Simd>
void AddAll(const float* a, const float* b, const float* slopes, float* sums, size_t count) {
  if (slopes) {
    ForLanes<Simd>(count, [&](auto lanes, size_t i) BINARYVIT_INLINE {
      lanes.Store(sums + i, lanes.Prelu(lanes.Add(lanes.Load(a + i), lanes.Load(b + i)), lanes.Load(slopes + i)));
    });
  } else {
    ForLanes<Simd>(count, [&](auto lanes, size_t i) BINARYVIT_INLINE {
      lanes.Store(sums + i, lanes.Add(lanes.Load(a + i), lanes.Load(b + i)));
    });
  }
}

template <typename Simd>
void ScaleAll(const float* values, const float* factors, const float* addends, float* results, size_t count) {
  if (addends) {
    ForLanes<Simd>(count, [&](auto lanes, size_t i) BINARYVIT_INLINE {
      const auto product = lanes.Multiply(lanes.Load(values + i), lanes.Load(factors + i));
      lanes.Store(results + i, lanes.Add(product, lanes.Load(addends + i)));
    });
  } else {
    ForLanes<Simd>(count, [&](auto lanes, size_t i) BINARYVIT_INLINE {
      lanes.Store(results + i, lanes.Multiply(lanes.Load(values + i), lanes.Load(factors + i)));
    });
  }
}

// The products of the next four values for each lane, those of the first values first.
template <typename Simd>
inline BINARYVIT_INLINE void MultiplyQuarters(const float* values, const float* factors,
                                              typename Simd::Float (&products)[4]) {
  typename Simd::Float x[4], f[4];
  Simd::LoadQuarters(values, x);
  Simd::LoadQuarters(factors, f);
  Unroll<4>([&](int i) BINARYVIT_INLINE { products[i] = Simd::Multiply(x[i], f[i]); });
}

template <typename Simd>
inline BINARYVIT_INLINE typename Simd::Float SumOfFour(const typename Simd::Float (&terms)[4]) {
  return Simd::Add(Simd::Add(terms[0], terms[1]), Simd::Add(terms[2], terms[3]));
}

// Four lanes are a unit, of which each sums every fourth term.
template <typename Simd, int rows, int vectors>
inline BINARYVIT_INLINE void MultiplyFloatTile(const float* values, const float* weights, size_t depth,
                                               float* output, size_t stride) {
  constexpr size_t fours = Simd::kLanes / 4;
  typename Simd::Float sums[vectors][4], weight[vectors];
  Unroll<vectors>([&](int v) BINARYVIT_INLINE { Unroll<4>([&](int r) BINARYVIT_INLINE { sums[v][r] = Simd::Set(0.0f); }); });
  size_t k = 0;
  for (; k + 4 <= depth; k += 4) {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE {
      weight[v] = Simd::LoadFours(weights + v * fours * depth + k, depth);
    });
    Unroll<rows>([&](int r) BINARYVIT_INLINE {
      const auto x = Simd::LoadFours(values + r * depth + k, 0);
      Unroll<vectors>([&](int v) BINARYVIT_INLINE { sums[v][r] = Simd::Add(sums[v][r], Simd::Multiply(x, weight[v])); });
    });
  }
  Unroll<vectors>([&](int v) BINARYVIT_INLINE {
    alignas(kAlignment) float partial[4 * Simd::kLanes], totals[Simd::kLanes];
    typename Simd::Float terms[4];
    Unroll<4>([&](int r) BINARYVIT_INLINE { Simd::Store(partial + r * Simd::kLanes, sums[v][r]); });
    Simd::LoadQuarters(partial, terms);
    Simd::Store(totals, SumOfFour<Simd>(terms));
    for (size_t r = 0; r < rows; ++r) {
      for (size_t u = 0; u < fours; ++u) {
        float total = totals[r * fours + u];
        const float* unit = weights + (v * fours + u) * depth;
        for (size_t i = k; i < depth; ++i) total += values[r * depth + i] * unit[i];
        output[r * stride + v * fours + u] = total;
      }
    }
  });
}

template <typename Simd>
void MultiplyFloatsAll(const float* values, const float* weights, size_t rows, size_t units, size_t depth,
                       float* output, size_t stride) {
  constexpr size_t fours = Simd::kLanes / 4;
  ForRowTiles<4>(rows, [&](size_t row, auto height) {
    const float* x = values + row * depth;
    float* to = output + row * stride;
    size_t unit = 0;
    if constexpr (fours > 0) {
      for (; unit + 2 * fours <= units; unit += 2 * fours) {
        MultiplyFloatTile<Simd, height, 2>(x, weights + unit * depth, depth, to + unit, stride);
      }
      if (unit + fours <= units) {
        MultiplyFloatTile<Simd, height, 1>(x, weights + unit * depth, depth, to + unit, stride);
        unit += fours;
      }
    }
    for (; unit < units; ++unit) {
      const float* weight = weights + unit * depth;
      for (size_t r = 0; r < size_t{height}; ++r) to[r * stride + unit] = DotInFours(x + r * depth, weight, depth);
    }
  });
}

template <typename Simd, int windows, int vectors>
inline BINARYVIT_INLINE void EmbedTile(const Strips& strips, const float* values, const float* weights, const float* biases,
                                       size_t units, float* output, size_t stride) {
  typename Simd::Float sums[windows][vectors];
  Unroll<vectors>([&](int v) BINARYVIT_INLINE {
    const auto bias = Simd::Load(biases + v * Simd::kLanes);
    Unroll<windows>([&](int w) BINARYVIT_INLINE { sums[w][v] = bias; });
  });
  for (size_t strip = 0; strip < strips.count; ++strip, values += strips.stride) {
    for (size_t i = 0; i < strips.width; ++i, weights += units) {
      typename Simd::Float weight[vectors];
      Unroll<vectors>([&](int v) BINARYVIT_INLINE { weight[v] = Simd::Load(weights + v * Simd::kLanes); });
      Unroll<windows>([&](int w) BINARYVIT_INLINE {
        const auto x = Simd::Set(values[w * strips.width + i]);
        Unroll<vectors>([&](int v) BINARYVIT_INLINE { sums[w][v] = Simd::MultiplyAdd(x, weight[v], sums[w][v]); });
      });
    }
  }
  Unroll<windows>([&](int w) BINARYVIT_INLINE {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE { Simd::Store(output + w * stride + v * Simd::kLanes, sums[w][v]); });
  });
}

template <typename Isa>
void EmbedAll(const Strips& strips, size_t windows, const float* weights, const float* biases, size_t units, float* output,
              size_t stride) {
  using Simd = typename Isa::Simd;
  constexpr int vectors = Simd::kLanes < 8 ? 4 : 2;  // more of few lanes, as each value is spread over a vector once for all
  constexpr size_t block = vectors * Simd::kLanes;
  ForRowTiles<Isa::Tile::kRows>(windows, [&](size_t first, auto count) {
    const float* values = strips.values + first * strips.width;
    float* to = output + first * stride;
    size_t unit = 0;
    for (; unit + block <= units; unit += block) {
      EmbedTile<Simd, count, vectors>(strips, values, weights + unit, biases + unit, units, to + unit, stride);
    }
    ForLanes<Simd>(units - unit, [&](auto lanes, size_t i) BINARYVIT_INLINE {
      const size_t u = unit + i;
      EmbedTile<decltype(lanes), count, 1>(strips, values, weights + u, biases + u, units, to + u, stride);
    });
  });
}

template <typename Simd>
void DotFoursAll(const float* values, const float* factors, float* sums, size_t count) {
  ForLanes<Simd>(count, [&](auto lanes, size_t i) BINARYVIT_INLINE {
    using Lanes = decltype(lanes);
    typename Lanes::Float products[4];
    MultiplyQuarters<Lanes>(values + 4 * i, factors + 4 * i, products);
    Lanes::Store(sums + i, SumOfFour<Lanes>(products));
  });
}

template <typename Simd>
void DotEightsAll(const float* values, const float* factors, float* sums, size_t count) {
  ForLanes<Simd>(count, [&](auto lanes, size_t i) BINARYVIT_INLINE {
    using Lanes = decltype(lanes);
    const float* x = values + 8 * i;
    const float* f = factors + 8 * i;
    typename Lanes::Float low[4], high[4];  // of the first and the last half of the sums: terms q and q + 4 side by side
    MultiplyQuarters<Lanes>(x, f, low);
    MultiplyQuarters<Lanes>(x + 4 * Lanes::kLanes, f + 4 * Lanes::kLanes, high);
    Unroll<4>([&](int q) BINARYVIT_INLINE {
      typename Lanes::Float even, odd;
      Lanes::Deinterleave(low[q], high[q], &even, &odd);
      low[q] = Lanes::Add(even, odd);
    });
    Lanes::Store(sums + i, SumOfFour<Lanes>(low));
  });
}

// `count` positions from x on, all channels of them: they share weights and the neighbors to the left and right. Where
// they lie inside, all neighbors exist and the column edges are equal.
template <typename Simd, int reach, int count, bool inside>
void CrossPositions(const CrossRow& shared, size_t x, float* output) {
  const CrossRow row = shared;  // nothing that is stored can change it
  constexpr int size = count + 2 * reach;
  const size_t step = row.channels;
  const float* beside[size];
  Unroll<size>([&](int i) BINARYVIT_INLINE {
    const size_t at = x + static_cast<size_t>(i) - reach;  // left of the map it wraps around
    beside[i] = inside || at < row.width ? row.center + at * step : row.zeros;
  });
  const float* above[reach];
  const float* below[reach];
  Unroll<reach>([&](int d) BINARYVIT_INLINE { above[d] = row.above[d] + x * step, below[d] = row.below[d] + x * step; });
  const float* column_edge = row.column_edges + x * step;
  output += x * step;
  ForLanes<Simd>(step, [&](auto lanes, size_t c) BINARYVIT_INLINE {
    using Lanes = decltype(lanes);
    typename Lanes::Float window[size], sums[count];
    Unroll<size>([&](int i) BINARYVIT_INLINE { window[i] = Lanes::Load(beside[i] + c); });
    const float* weights = row.weights + c;
    const auto center = Lanes::Load(weights);
    Unroll<count>([&](int i) BINARYVIT_INLINE { sums[i] = Lanes::Multiply(window[reach + i], center); });
    Unroll<reach>([&](int d) BINARYVIT_INLINE {
      const auto weight = Lanes::Load(weights += step);
      Unroll<count>([&](int i) BINARYVIT_INLINE {
        const auto pair = Lanes::Add(Lanes::Load(above[d] + i * step + c), Lanes::Load(below[d] + i * step + c));
        sums[i] = Lanes::Add(sums[i], Lanes::Multiply(pair, weight));
      });
    });
    Unroll<reach>([&](int d) BINARYVIT_INLINE {
      const auto weight = Lanes::Load(weights += step);
      Unroll<count>([&](int i) BINARYVIT_INLINE {
        const auto pair = Lanes::Add(window[reach + i - 1 - d], window[reach + i + 1 + d]);
        sums[i] = Lanes::Add(sums[i], Lanes::Multiply(pair, weight));
      });
    });
    const auto row_edge = Lanes::Load(row.row_edge + c), edge_inside = Lanes::Add(row_edge, Lanes::Load(column_edge + c));
    Unroll<count>([&](int i) BINARYVIT_INLINE {
      auto edge = edge_inside;
      if constexpr (!inside) edge = Lanes::Add(row_edge, Lanes::Load(column_edge + i * step + c));
      auto sum = Lanes::Add(sums[i], edge);
      if (row.residual) sum = Lanes::Add(sum, window[reach + i]);
      Lanes::Store(output + i * step + c, sum);
    });
  });
}

template <typename Simd, int reach>
void CrossReach(const CrossRow& row, float* output) {
  CrossPositions<Simd, reach, reach, false>(row, 0, output);
  ForRowTiles<4>(row.width - 2 * reach, [&](size_t x, auto count) {
    CrossPositions<Simd, reach, count, true>(row, reach + x, output);
  });
  CrossPositions<Simd, reach, reach, false>(row, row.width - reach, output);
}

// The same of a vector of channels for any reach.
template <typename Simd>
void CrossAnyReach(const CrossRow& row, size_t channel, float* output) {
  const size_t step = row.channels;
  for (size_t x = 0; x < row.width; ++x) {
    const size_t i = x * step + channel;
    const float* weight = row.weights + channel;
    const auto add_pair = [&](typename Simd::Float sum, typename Simd::Float pair) {
      return Simd::Add(sum, Simd::Multiply(pair, Simd::Load(weight += step)));
    };
    const auto at = [&](bool inside, size_t position) {
      return inside ? Simd::Load(row.center + position) : Simd::Set(0.0f);
    };
    const auto center = Simd::Load(row.center + i);
    auto sum = Simd::Multiply(center, Simd::Load(weight));
    for (size_t d = 0; d < row.vertical; ++d) {
      sum = add_pair(sum, Simd::Add(Simd::Load(row.above[d] + i), Simd::Load(row.below[d] + i)));
    }
    for (size_t d = 1; d <= row.horizontal; ++d) {
      sum = add_pair(sum, Simd::Add(at(d <= x, i - d * step), at(x + d < row.width, i + d * step)));
    }
    sum = Simd::Add(sum, Simd::Add(Simd::Load(row.row_edge + channel), Simd::Load(row.column_edges + i)));
    Simd::Store(output + i, row.residual ? Simd::Add(sum, center) : sum);
  }
}

template <typename Simd>
void CrossAll(const CrossRow& row, float* output) {
  switch (row.vertical == row.horizontal && row.width >= 2 * row.horizontal ? row.vertical : 0) {
    case 1:
      return CrossReach<Simd, 1>(row, output);
    case 2:
      return CrossReach<Simd, 2>(row, output);
    case 3:
      return CrossReach<Simd, 3>(row, output);
    default:
      return ForLanes<Simd>(row.channels, [&](auto lanes, size_t channel) {
        CrossAnyReach<decltype(lanes)>(row, channel, output);
      });
  }
}

template <typename Simd>
void PoolColumn(const float* values, size_t row_stride, size_t stride, size_t size, const float* factors, float* means) {
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
  ForLanes<Simd>(channels, [&](auto lanes, size_t c) BINARYVIT_INLINE {
    PoolColumn<decltype(lanes)>(values + c, row_stride, channels, size, factors + c, means + c);
  });
}

}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_GENERIC_ELEMENTWISE_H_
