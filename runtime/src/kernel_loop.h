// MakeKernelSet: covers rows and units with tiles, for the vectorised kernel sets. Everything here is instantiated with types
// local to one source file, so that no function compiled for one instruction set is linked into another.
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

// Gives the counts of a tile to its output, vector by vector: counts(r, v) is that of row r and vector v. Output has At(unit),
// whose result keeps what all rows share, and stores.
template <int rows, int vectors, size_t lanes, typename Output, typename Counts>
inline BINARYVIT_INLINE void StoreTile(const Output& output, size_t row, size_t unit, const Counts& counts) {
  decltype(output.At(unit)) columns[vectors];
  Unroll<vectors>([&](int v) BINARYVIT_INLINE { columns[v] = output.At(unit + v * lanes); });
  auto* data = output.target.At(row, unit);
  Unroll<rows>([&](int r) BINARYVIT_INLINE {
    Unroll<vectors>([&](int v) BINARYVIT_INLINE { columns[v].Store(data + v * lanes, counts(r, v)); });
    data += output.target.stride;
  });
}

// Where the results of a tile go: rows from `row` and units from `unit` on, `first_unit` being the first one at `data`.
template <typename T>
struct Target {
  using Value = T;

  T* data;
  size_t stride;
  size_t first_unit;

  T* At(size_t row, size_t unit) const { return data + row * stride + (unit - first_unit); }
};

// Tile has the static constants kUnits, kWordGroup, kRows (a power of two) and kBlocks (1 or 2), and
//
//   template <int rows, int blocks, typename Output>
//   static void Run(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words, const Output&,
//                   size_t row, size_t unit);
//
// for all powers of two up to kRows and for 1 and kBlocks blocks of kUnits units; all of its units are written. Output has
// a Target `target`. Where a block has more units than there are, the tile writes beside, and the rest is copied.
template <typename Tile, int rows, int blocks, typename Output>
void RunTile(const uint32_t* activations, size_t stride, const uint32_t* weights, size_t words, const Output& output,
             size_t row, size_t unit, size_t units) {
  constexpr size_t width = blocks * Tile::kUnits;
  if (unit + width <= units) {
    Tile::template Run<rows, blocks>(activations, stride, weights, words, output, row, unit);
    return;
  }
  using Value = typename decltype(Output::target)::Value;
  alignas(kAlignment) Value edge[rows * width];
  Output beside = output;
  beside.target = {edge, width, unit};
  Tile::template Run<rows, blocks>(activations, stride, weights, words, beside, 0, unit);
  for (int r = 0; r < rows; ++r) {
    std::memcpy(output.target.At(row + r, unit), edge + r * width, (units - unit) * sizeof(Value));
  }
}

// Weights of a block stay in the first cache while all rows pass.
template <typename Tile, int blocks, typename Output>
void ForEachRowTile(const Rows& rows, const uint32_t* weights, size_t words, const Output& output, size_t unit,
                    size_t units) {
  const uint32_t* data = rows.data;
  size_t row = 0;
  for (; row + Tile::kRows <= rows.count; row += Tile::kRows, data += Tile::kRows * rows.stride) {
    RunTile<Tile, Tile::kRows, blocks>(data, rows.stride, weights, words, output, row, unit, units);
  }
  const size_t left = rows.count - row;
  if constexpr (Tile::kRows > 4) {
    if (left & 4) {
      RunTile<Tile, 4, blocks>(data, rows.stride, weights, words, output, row, unit, units);
      data += 4 * rows.stride, row += 4;
    }
  }
  if (left & 2) {
    RunTile<Tile, 2, blocks>(data, rows.stride, weights, words, output, row, unit, units);
    data += 2 * rows.stride, row += 2;
  }
  if (left & 1) RunTile<Tile, 1, blocks>(data, rows.stride, weights, words, output, row, unit, units);
}

template <typename Tile, typename Output>
void ForEachTile(const Rows& rows, const Weights& weights, const Output& output) {
  const size_t block_size = Tile::kUnits * RoundUp(weights.words, Tile::kWordGroup);
  const uint32_t* data = weights.data;
  size_t unit = 0;
  for (; unit + (Tile::kBlocks - 1) * Tile::kUnits < weights.units; unit += Tile::kBlocks * Tile::kUnits) {
    ForEachRowTile<Tile, Tile::kBlocks>(rows, data, weights.words, output, unit, weights.units);
    data += Tile::kBlocks * block_size;
  }
  for (; unit < weights.units; unit += Tile::kUnits, data += block_size) {
    ForEachRowTile<Tile, 1>(rows, data, weights.words, output, unit, weights.units);
  }
}

// The entry points of a KernelSet. Isa has the types Tile, CountOutput{target} and FloatOutput<clamped>{target, affine}.
template <typename Isa>
void CountAll(const Rows& rows, const Weights& weights, int32_t* output, size_t stride) {
  ForEachTile<typename Isa::Tile>(rows, weights, typename Isa::CountOutput{{output, stride, 0}});
}

template <typename Isa>
void MultiplyAll(const Rows& rows, const Weights& weights, const Affine& affine, float* output, size_t stride) {
  if (affine.clamped) {
    const typename Isa::template FloatOutput<true> transform{{output, stride, 0}, affine};
    ForEachTile<typename Isa::Tile>(rows, weights, transform);
  } else {
    const typename Isa::template FloatOutput<false> transform{{output, stride, 0}, affine};
    ForEachTile<typename Isa::Tile>(rows, weights, transform);
  }
}

template <typename Isa>
constexpr KernelSet MakeKernelSet(const char* name) {
  using Tile = typename Isa::Tile;
  return {name, Tile::kUnits, Tile::kWordGroup, MultiplyAll<Isa>, CountAll<Isa>, Isa::PackSigns};
}

}  // namespace binaryvit

#endif  // BINARYVIT_KERNEL_LOOP_H_
