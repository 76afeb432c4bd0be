#include "ops/fused/probability_limit.h"

#include <cmath>

namespace binaryvit {
namespace {

constexpr double kUnit = UINT16_MAX;

}  // namespace

bool ProbabilityLimit::Prepare(size_t head_dim, double threshold) {
  threshold_ = threshold;
  const size_t values = head_dim + 1;
  constexpr size_t size = Probabilities::kSize;
  if (!exponentials_.Resize(values) || !table_.Resize(2 * size)) return false;
  for (size_t d = 0; d < values; ++d) {
    exponentials_[d] = std::exp(-2.0 * static_cast<double>(d) / std::sqrt(static_cast<double>(head_dim)));
  }
  for (size_t d = 0; d < size && d < values; ++d) {
    const auto units = static_cast<unsigned>(kUnit * exponentials_[d] + 0.5);
    table_[d] = static_cast<uint8_t>(units);
    table_[size + d] = static_cast<uint8_t>(units >> 8);
  }
  // The table's last entry is used for all larger numbers. So bytes are for heads of up to 114 channels, and no sum of two
  // counts is above 229; the counts of larger heads are int32.
  has_bytes_ = threshold > 0 && (values < size || table_[size - 1] + table_[2 * size - 1] == 0);

  // No sum is less than a unit.
  size_t count = 0;
  while (threshold > 0 && count < values && exponentials_[count] > threshold) ++count;
  if (!bounds_.Resize(count + 1)) return false;
  for (size_t d = 0; d < count; ++d) {
    const double bound = kUnit * exponentials_[d] / threshold;
    bounds_[d] = bound < INT32_MAX ? static_cast<int32_t>(bound) : INT32_MAX;
  }
  return true;
}

template <typename Count>
int32_t ProbabilityLimit::Exactly(const Count* counts) const {
  double sums[4] = {};  // four sums, so that an addition doesn't wait for the one before
  size_t i = 0;
  for (; i + 4 <= keys_; i += 4) {
    for (size_t j = 0; j < 4; ++j) sums[j] += exponentials_[static_cast<size_t>(counts[i + j])];
  }
  for (; i < keys_; ++i) sums[0] += exponentials_[static_cast<size_t>(counts[i])];
  const double least = threshold_ * ((sums[0] + sums[1]) + (sums[2] + sums[3]));
  size_t above = 0;
  while (above < exponentials_.size() && exponentials_[above] > least) ++above;
  return static_cast<int32_t>(above) - 1;
}

int32_t ProbabilityLimit::Of(const int32_t* counts) const { return Exactly(counts); }

void ProbabilityLimit::SetKeys(size_t keys) {
  keys_ = keys;
  const size_t whole_blocks = (keys - 1) / kBytesPerBlock * kBytesPerBlock;
  for (size_t i = 0; i < kBytesPerBlock; ++i) missing_keys_[i] = whole_blocks + i < keys ? 0 : UINT8_MAX;
}

void ProbabilityLimit::Pack(const KernelSet& kernels, uint8_t* counts, size_t rows, uint32_t* masks) const {
  const size_t blocks = (keys_ + kBytesPerBlock - 1) / kBytesPerBlock;
  // Each exponential is rounded by half a unit at most, and so is a bound. Where that might change the outcome, which is
  // rare, it is computed exactly.
  const auto error = static_cast<int32_t>(keys_ / 2 + 2);
  const Probabilities table = {table_.data(),  table_.data() + Probabilities::kSize, bounds_.data(),
                               bounds_.size(), error,                                missing_keys_};
  uint32_t undecided = kernels.pack_probable(counts, rows, blocks, table, masks);
  for (size_t row = 0; undecided != 0; ++row, undecided >>= 1) {
    if ((undecided & 1) == 0) continue;
    const uint8_t* row_of_counts = counts + row * blocks * kBytesPerBlock;
    kernels.pack_bytes_below(row_of_counts, static_cast<uint8_t>(Exactly(row_of_counts) + 1), blocks,
                             masks + row * blocks * kBytesPerBlock / kBitsPerWord);
  }
}

}  // namespace binaryvit
