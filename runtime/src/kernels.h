// KernelSet: the inner loops, once for each instruction set, and the choice among them.
//
// Bits are packed as the Larq Compute Engine packs them: 32 channels to a word, the first channel in the lowest bit, a set
// bit for a negative value, zeros after the last channel. The product of two rows of +-1 is then their length less twice
// the number of bits in which they differ.
#ifndef BINARYVIT_KERNELS_H_
#define BINARYVIT_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "buffer.h"

namespace binaryvit {

constexpr size_t kBitsPerWord = 32;

static inline size_t WordsFor(size_t channels) { return (channels + kBitsPerWord - 1) / kBitsPerWord; }

// Rows of packed activations, `stride` words from one to the next.
struct Rows {
  const uint32_t* data;
  size_t stride;
  size_t count;
};

// Packed weights in the layout of one kernel set: see PackWeights.
struct Weights {
  const uint32_t* data;
  size_t units;
  size_t words;  // of a row of activations
};

// What becomes of a count of differing bits: float(clamp(2 * count)) * multiplier + bias, rounded after each step.
// Without `clamped`, float(count) * multiplier + bias: the factor 2 is in the multiplier.
// The arrays have room for a multiple of the kernel set's `unit_tile`.
struct Affine {
  const float* multiplier;
  const float* bias;
  bool clamped;
  int32_t clamp_min;
  int32_t clamp_max;
};

struct KernelSet {
  const char* name;
  size_t unit_tile;   // units whose weights stand side by side
  size_t word_group;  // words of one unit that stand side by side

  // output[row][unit] of all rows and units; `stride` values from one row of the output to the next.
  void (*multiply)(const Rows&, const Weights&, const Affine&, float* output, size_t stride);
  // The same without Affine: the number of differing bits.
  void (*count)(const Rows&, const Weights&, int32_t* output, size_t stride);
  // Sets bit i % 32 of word i / 32 for each of the 32 * words values that is below zero.
  void (*pack_signs)(const float* values, size_t words, uint32_t* bits);
};

// The best set that this processor runs, or the one that the environment variable BINARYVIT_KERNELS names: scalar, sse,
// avx2, avx512, neon or dotprod. Null where that is unknown or can't run here; KernelNames says what could.
const KernelSet* SelectKernels();
const char* KernelNames();

// Rearranges `units` rows of `words` words into blocks of unit_tile units: block by block, group of words by group, unit
// by unit. What is missing at the ends is zero. False where there is no memory.
[[nodiscard]] bool PackWeights(const KernelSet&, const uint32_t* rows, size_t units, size_t words,
                               Buffer<uint32_t>* packed);

// Rounds up to a multiple of the tile.
static inline size_t RoundUp(size_t value, size_t tile) { return (value + tile - 1) / tile * tile; }

extern const KernelSet kScalarKernels;
#if defined(__x86_64__)
extern const KernelSet kSseKernels, kAvx2Kernels, kAvx512Kernels;
#elif defined(__aarch64__)
extern const KernelSet kNeonKernels, kDotprodKernels;
#endif

}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_H_
