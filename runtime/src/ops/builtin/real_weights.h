// RealWeights: the weights of a product of real numbers, rearranged into blocks of units for KernelSet::embed.
#ifndef BINARYVIT_OPS_BUILTIN_REAL_WEIGHTS_H_
#define BINARYVIT_OPS_BUILTIN_REAL_WEIGHTS_H_

#include <cstring>

#include "ops/builtin/clamp.h"
#include "ops/op.h"

namespace binaryvit {

class RealWeights {
 public:
  [[nodiscard]] bool Resize(size_t units, size_t depth) {
    units_ = units;
    depth_ = depth;
    return weights_.Resize(units * depth) && biases_.Resize(units);
  }

  // Takes a row of `depth` weights for each unit; `biases` may be null.
  void Pack(const float* weights, const float* biases) {
    for (size_t unit = 0; unit < units_; ++unit) {
      const size_t first = unit / kUnits * kUnits;
      float* block = weights_.data() + first * depth_ + unit % kUnits;
      for (size_t i = 0; i < depth_; ++i) block[i * UnitsFrom(first)] = weights[unit * depth_ + i];
    }
    if (biases) std::memcpy(biases_.data(), biases, units_ * sizeof(float));
  }

  size_t units() const { return units_; }
  size_t depth() const { return depth_; }
  size_t blocks() const { return (units_ + kUnits - 1) / kUnits; }

  // The units of a block for some windows; rows of the output are those of all units.
  void Multiply(const KernelSet& kernels, const Strips& strips, size_t windows, size_t block, const Clamp& clamp,
                float* output) const {
    const size_t first = block * kUnits, count = UnitsFrom(first);
    kernels.embed(strips, windows, weights_.data() + first * depth_, biases_.data() + first, count, output + first, units_);
    for (size_t window = 0; window < windows; ++window) clamp.Apply(output + window * units_ + first, count);
  }

 private:
  static constexpr size_t kUnits = 32;  // a multiple of the units of all tiles

  // How many a block has.
  size_t UnitsFrom(size_t first) const { return units_ - first < kUnits ? units_ - first : kUnits; }

  size_t units_ = 0, depth_ = 0;
  Buffer<float> weights_, biases_;
};

}  // namespace binaryvit

#endif  // BINARYVIT_OPS_BUILTIN_REAL_WEIGHTS_H_
