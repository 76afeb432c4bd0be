#include "probability_limit.h"

#include <cmath>

namespace binaryvit {
namespace {

constexpr double kUnit = UINT16_MAX;
constexpr size_t kBoundsPerStep = 8;

}  // namespace

bool ProbabilityLimit::Prepare(size_t head_dim, double threshold) {
  threshold_ = threshold;
  const size_t values = head_dim + 1;
  constexpr size_t size = ByteExponentials::kSize;
  if (!exponentials_.Resize(values) || !table_.Resize(2 * size)) return false;
  for (size_t d = 0; d < values; ++d) {
    exponentials_[d] = std::exp(-2.0 * static_cast<double>(d) / std::sqrt(static_cast<double>(head_dim)));
  }
  for (size_t d = 0; d < size && d < values; ++d) {
    const auto units = static_cast<unsigned>(kUnit * exponentials_[d] + 0.5);
    table_[d] = static_cast<uint8_t>(units);
    table_[size + d] = static_cast<uint8_t>(units >> 8);
  }
  // The table's last entry stands for all that would follow it.
  takes_bytes_ = threshold > 0 && head_dim < UINT8_MAX && (values < size || table_[size - 1] + table_[2 * size - 1] == 0);

  // No sum is less than a unit.
  size_t count = 0;
  while (threshold > 0 && count < values && exponentials_[count] > threshold) ++count;
  if (!bounds_.Resize(RoundUp(count + 1, kBoundsPerStep))) return false;
  for (size_t d = 0; d < count; ++d) {
    const double bound = kUnit * exponentials_[d] / threshold;
    bounds_[d] = bound < INT32_MAX ? static_cast<int32_t>(bound) : INT32_MAX;
  }
  return true;
}

template <typename Count>
int32_t ProbabilityLimit::Exactly(const Count* counts, size_t keys) const {
  double sums[4] = {};  // side by side, so that an addition needn't wait for the one before
  size_t i = 0;
  for (; i + 4 <= keys; i += 4) {
    for (size_t j = 0; j < 4; ++j) sums[j] += exponentials_[static_cast<size_t>(counts[i + j])];
  }
  for (; i < keys; ++i) sums[0] += exponentials_[static_cast<size_t>(counts[i])];
  const double least = threshold_ * ((sums[0] + sums[1]) + (sums[2] + sums[3]));
  size_t above = 0;
  while (above < exponentials_.size() && exponentials_[above] > least) ++above;
  return static_cast<int32_t>(above) - 1;
}

int32_t ProbabilityLimit::Of(const int32_t* counts, size_t keys) const { return Exactly(counts, keys); }

int32_t ProbabilityLimit::Of(const KernelSet& kernels, const uint8_t* counts, size_t keys) const {
  uint8_t least;
  const size_t blocks = (keys + kBytesPerBlock - 1) / kBytesPerBlock;
  const ByteExponentials table = {table_.data(), table_.data() + ByteExponentials::kSize};
  const uint64_t exponentials = kernels.sum_exponentials(counts, blocks, table, &least);
  if (exponentials >= INT32_MAX) return Exactly(counts, keys);
  const auto sum = static_cast<int32_t>(exponentials);
  int32_t above = 0;
  for (size_t d = 0; d < bounds_.size(); d += kBoundsPerStep) {
    for (size_t i = 0; i < kBoundsPerStep; ++i) above += bounds_[d + i] > sum;
  }
  // Each exponential is rounded by half a unit at most, and so is the bound. Where that might change the outcome, which is
  // rare, it is computed exactly.
  const auto error = static_cast<int32_t>(keys / 2 + 2);
  if ((above > 0 && bounds_[static_cast<size_t>(above - 1)] - sum <= error) ||
      sum - bounds_[static_cast<size_t>(above)] <= error) {
    return Exactly(counts, keys);
  }
  return least + above - 1;
}

}  // namespace binaryvit
