// ProbabilityLimit: which probabilities of a row of attention are above the threshold.
#ifndef BINARYVIT_OPS_FUSED_PROBABILITY_LIMIT_H_
#define BINARYVIT_OPS_FUSED_PROBABILITY_LIMIT_H_

#include "kernels/kernel_set.h"

namespace binaryvit {

// A score takes one of head_dim + 1 values, by the number of bits in which query and key differ. So the exponentials are a
// table, and a probability is above the threshold where that number is at most a limit, which the row's sum gives.
class ProbabilityLimit {
 public:
  // False if there is no memory.
  [[nodiscard]] bool Prepare(size_t head_dim, double threshold);

  // Sets the number of keys in a row.
  void SetKeys(size_t keys);

  // Whether counts of differing bits may come as bytes, which is faster.
  bool TakesBytes() const { return has_bytes_ && keys_ <= INT16_MAX; }  // a sum of exponentials of 16 bits is an int32

  // The largest number of differing bits whose probability is above the threshold, or -1; of the row's counts.
  int32_t Of(const int32_t* counts) const;
  // Sets a bit for each probability that is above the threshold. A row of counts has whole blocks of bytes, and so has one
  // of bits; at most Probabilities::kMaxRows rows.
  void Pack(const KernelSet& kernels, uint8_t* counts, size_t rows, uint32_t* masks) const;

 private:
  template <typename Count>
  int32_t Exactly(const Count* counts) const;

  double threshold_ = 0;
  size_t keys_ = 0;
  bool has_bytes_ = false;
  Buffer<double> exponentials_;  // by the number of bits that differ
  // For bytes, where exponentials are in units of 1 / 65535 of the row's largest one: see Probabilities.
  Buffer<uint8_t> table_;
  Buffer<int32_t> bounds_;
  uint8_t missing_keys_[kBytesPerBlock] = {};
};

}  // namespace binaryvit

#endif  // BINARYVIT_OPS_FUSED_PROBABILITY_LIMIT_H_
