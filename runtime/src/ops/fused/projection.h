// PackedProjection: the constants of a binary projection with a shortcut, rearranged for the kernels.
#ifndef BINARYVIT_OPS_FUSED_PROJECTION_H_
#define BINARYVIT_OPS_FUSED_PROJECTION_H_

#include <cstring>

#include "ops/op.h"

namespace binaryvit {

// In a fused operator's own memory, rows of reals are padded to whole words of bits, which are multiples of all tiles.
static inline size_t PaddedWidth(size_t channels) { return RoundUp(channels, kBitsPerWord); }

// A row of a table of parameters, padded with zeros. -0 becomes 0, so that no sum with it is -0.
[[nodiscard]] bool CopyPadded(const float* row, size_t channels, Buffer<float>* padded);

// The sign limits of thresholds, in the same way.
[[nodiscard]] bool CopyLimits(const float* thresholds, size_t channels, Buffer<float>* limits);

// Rows of bits without those beyond `channels`, which may be set in a file and would count in a product.
[[nodiscard]] bool CopyBits(const uint32_t* rows, size_t count, size_t channels, Buffer<uint32_t>* bits);

struct PackedProjection {
  Buffer<uint32_t> kernel;
  Buffer<float> multiplier, bias, slope, scale, shift, sign_limit;
  bool small_slopes = false;
  size_t units = 0;
  size_t words = 0;

  // Takes a row of `row_words` words per unit, and a row of the table for each constant. `scales` and `shifts` may be null.
  // False if there is no memory.
  [[nodiscard]] bool Pack(const KernelSet&, const uint32_t* rows, size_t row_words, size_t unit_count,
                          const float* multipliers, const float* biases, const float* slopes,
                          const float* scales = nullptr, const float* shifts = nullptr);

  void Run(const KernelSet& kernels, const Rows& rows, const float* shortcut, const float* residual, float* output,
           size_t stride, const BitRows& signs = {}) const {
    const Projection table = {multiplier.data(), bias.data(),       slope.data(), scale.data(),
                              shift.data(),      sign_limit.data(), small_slopes};
    kernels.project(rows, {kernel.data(), units, words}, table, shortcut, residual, output, stride, signs);
  }
};

// Fused operators compute a few positions at a time, from the input to the output: few enough to stay in the cache, fewer
// if threads would wait for the last task, and a multiple of the kernels' row tile.
constexpr size_t kRowsPerTask = 16;  // at most
static inline size_t RowsPerTask(const KernelSet& kernels, size_t positions, int threads) {
  constexpr size_t kTasksPerThread = 6;
  const bool few = positions < kTasksPerThread * kRowsPerTask * static_cast<size_t>(threads);
  return (threads > 1 && few ? kRowsPerTask / 2 : kRowsPerTask) / kernels.row_tile * kernels.row_tile;
}

// Copies `count` rows of `channels` values to rows of `stride`, or back.
static inline void CopyRows(const float* from, size_t from_stride, size_t channels, size_t count, float* to,
                            size_t to_stride) {
  for (size_t row = 0; row < count; ++row) {
    std::memcpy(to + row * to_stride, from + row * from_stride, channels * sizeof(float));
  }
}

}  // namespace binaryvit

#endif  // BINARYVIT_OPS_FUSED_PROJECTION_H_
