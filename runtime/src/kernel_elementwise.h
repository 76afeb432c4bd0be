// What has no product in it: signs of values as bits, crosses over a map, means over squares.
#ifndef BINARYVIT_KERNEL_ELEMENTWISE_H_
#define BINARYVIT_KERNEL_ELEMENTWISE_H_

#include "kernel_product.h"

namespace binaryvit {

// Scales a row and packs the signs of the shifted values.
template <typename Isa>
void ScaleAndPack(const float* values, const float* factors, const float* thresholds, size_t words, float* scaled,
                  uint32_t* bits) {
  using Simd = typename Isa::Simd;
  Isa::PackMasks(words, bits, [&](size_t i) BINARYVIT_INLINE {
    const auto x = Simd::Multiply(Simd::Load(values + i), Simd::Load(factors + i));
    Simd::Store(scaled + i, x);
    return Simd::Sign(Simd::Add(x, Simd::Load(thresholds + i)));
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

// The same for any reach.
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

// A vector of one value, for the channels after the last whole vector. It has a type for each Simd, so that code for one
// instruction set isn't linked into another.
template <typename Simd>
struct OneLane {
  using Float = float;
  static Float Load(const float* from) { return *from; }
  static Float Set(float x) { return x; }
  static Float Add(Float a, Float b) { return a + b; }
  static Float Multiply(Float a, Float b) { return a * b; }
  static void Store(float* to, Float x) { *to = x; }
};

template <typename Simd>
void CrossAll(const CrossRow& row, float* output) {
  const size_t reach = row.vertical == row.horizontal ? row.vertical : 0;
  size_t channel = 0;
  for (; channel + Simd::kLanes <= row.channels; channel += Simd::kLanes) {
    switch (reach) {
      case 1:
        CrossColumn<Simd, 1>(row, channel, output);
        break;
      case 2:
        CrossColumn<Simd, 2>(row, channel, output);
        break;
      case 3:
        CrossColumn<Simd, 3>(row, channel, output);
        break;
      default:
        CrossAnyReach<Simd>(row, channel, output);
    }
  }
  for (; channel < row.channels; ++channel) CrossAnyReach<OneLane<Simd>>(row, channel, output);
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
  size_t c = 0;
  for (; c + Simd::kLanes <= channels; c += Simd::kLanes) {
    PoolColumn<Simd>(values + c, row_stride, channels, size, factors + c, means + c);
  }
  for (; c < channels; ++c) {
    PoolColumn<OneLane<Simd>>(values + c, row_stride, channels, size, factors + c, means + c);
  }
}

}  // namespace binaryvit

#endif  // BINARYVIT_KERNEL_ELEMENTWISE_H_
