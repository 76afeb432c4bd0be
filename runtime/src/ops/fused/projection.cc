#include "ops/fused/projection.h"

namespace binaryvit {

bool CopyPadded(const float* row, size_t channels, Buffer<float>* padded) {
  if (!padded->Resize(PaddedWidth(channels))) return false;
  for (size_t i = 0; i < channels; ++i) (*padded)[i] = row[i] + 0.0f;
  return true;
}

bool CopyLimits(const float* thresholds, size_t channels, Buffer<float>* limits) {
  if (!limits->Resize(PaddedWidth(channels))) return false;
  for (size_t i = 0; i < channels; ++i) (*limits)[i] = -thresholds[i];
  return true;
}

bool CopyBits(const uint32_t* rows, size_t count, size_t channels, Buffer<uint32_t>* bits) {
  const size_t words = WordsFor(channels);
  if (!bits->Resize(count * words)) return false;
  std::memcpy(bits->data(), rows, count * words * sizeof(uint32_t));
  const size_t rest = channels % kBitsPerWord;
  for (size_t row = 0; rest != 0 && row < count; ++row) (*bits)[(row + 1) * words - 1] &= (uint32_t{1} << rest) - 1;
  return true;
}

bool PackedProjection::Pack(const KernelSet& kernels, const uint32_t* rows, size_t row_words, size_t unit_count,
                            const float* multipliers, const float* biases, const float* slopes, const float* scales,
                            const float* shifts) {
  units = unit_count;
  words = row_words;
  small_slopes = HasSmallSlopes(slopes, units);
  return PackWeights(kernels, rows, units, words, &kernel) && CopyPadded(multipliers, units, &multiplier) &&
         CopyPadded(biases, units, &bias) && CopyPadded(slopes, units, &slope) &&
         (!scales || (CopyPadded(scales, units, &scale) && CopyPadded(shifts, units, &shift)));
}

}  // namespace binaryvit
