// Which probabilities of attention rows are above the threshold: see ProbabilityLimit.
#ifndef BINARYVIT_KERNELS_GENERIC_PROBABILITY_H_
#define BINARYVIT_KERNELS_GENERIC_PROBABILITY_H_

#include "kernels/generic/product.h"

namespace binaryvit {

// One step after the other for all rows: what was written in parts isn't read as a whole at once, and the rows' chains of
// instructions run side by side.
template <typename Isa>
uint32_t PackProbable(uint8_t* counts, size_t rows, size_t blocks, const Probabilities& shared, uint32_t* masks) {
  const Probabilities table = shared;  // nothing that is stored can change it
  using Simd = typename Isa::Simd;
  constexpr size_t most = Probabilities::kMaxRows;
  const size_t row_of_counts = blocks * kBytesPerBlock, row_of_masks = row_of_counts / kBitsPerWord;
  uint64_t missing[kBytesPerBlock / sizeof(uint64_t)], last[kBytesPerBlock / sizeof(uint64_t)];
  std::memcpy(missing, table.missing_keys, sizeof missing);
  for (size_t row = 0; row < rows; ++row) {
    uint8_t* last_block = counts + (row + 1) * row_of_counts - kBytesPerBlock;
    std::memcpy(last, last_block, sizeof last);
    for (size_t i = 0; i < kBytesPerBlock / sizeof(uint64_t); ++i) last[i] |= missing[i];
    std::memcpy(last_block, last, sizeof last);
  }
  uint8_t least[most];
  int32_t sums[most] = {}, above[most], surely_above[most];
  Isa::SumExponentials(counts, rows, blocks, table, least, sums);
  for (size_t row = 0; row < rows; row += Simd::kLanes) {  // how many bounds are above what the sums may be
    const auto sum = Simd::Load(sums + row), error = Simd::Set(table.error);
    const auto low = Simd::Subtract(Simd::Subtract(sum, error), Simd::Set(int32_t{1})), high = Simd::Add(sum, error);
    auto count = Simd::Set(int32_t{0}), sure = count;
    for (size_t d = 0; d < table.bound_count; ++d) {
      const auto bound = Simd::Set(table.bounds[d]);
      count = Simd::AddLess(count, low, bound), sure = Simd::AddLess(sure, high, bound);
    }
    Simd::Store(above + row, count), Simd::Store(surely_above + row, sure);
  }
  uint32_t undecided = 0;
  for (size_t row = 0; row < rows; ++row) {
    undecided |= static_cast<uint32_t>(above[row] != surely_above[row]) << row;
    // This is at most 229: see ProbabilityLimit::Prepare.
    const auto limit = static_cast<uint8_t>(least[row] + surely_above[row]);
    Isa::PackBytesBelow(counts + row * row_of_counts, limit, blocks, masks + row * row_of_masks);
  }
  return undecided;
}

}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_GENERIC_PROBABILITY_H_
