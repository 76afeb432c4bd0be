// KernelSet: the inner loops, once for each instruction set, and the choice among them.
//
// Bits are packed as the Larq Compute Engine packs them: 32 channels to a word, the first channel in the lowest bit, a set
// bit for a negative value, zeros after the last channel. The product of two rows of +-1 is then their length less twice
// the number of bits in which they differ.
#ifndef BINARYVIT_KERNELS_KERNEL_SET_H_
#define BINARYVIT_KERNELS_KERNEL_SET_H_

#include <cstddef>
#include <cstdint>

#include "base/buffer.h"

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

// The transform of a count of differing bits: float(clamp(2 * count)) * multiplier + bias, rounded after each step.
// Without `clamped`, float(count) * multiplier + bias: the factor 2 is in the multiplier.
// The arrays have room for a multiple of the kernel set's `unit_tile`.
struct Affine {
  const float* multiplier;
  const float* bias;
  bool clamped;
  int32_t clamp_min;
  int32_t clamp_max;
};

// Rows of bits to write to, `stride` words from one to the next.
struct BitRows {
  uint32_t* data;
  size_t stride;
};

// Whether prelu(x, slope) is the larger one of x and slope * x for all slopes, infinite x included.
static inline bool HasSmallSlopes(const float* slopes, size_t count) {
  bool small = true;
  for (size_t i = 0; i < count; ++i) small &= slopes[i] <= 1 && slopes[i] != 0;
  return small;
}

// The transform of a count in a projection with a shortcut:
//
//   prelu(count * multiplier + bias + shortcut, slope) [* scale + shift] [+ residual]
//
// A value plus a threshold is negative where the value is below minus the threshold, its sign limit: the comparison rounds
// nothing and takes one instruction.
//
// These arrays have one value per unit. They and all rows are padded to a multiple of the unit tile.
struct Projection {
  const float* multiplier;
  const float* bias;
  const float* slope;
  const float* scale;  // null: neither scale nor shift
  const float* shift;
  const float* sign_limit;  // null: no signs; otherwise no scale
  bool small_slopes;        // HasSmallSlopes
};

// The first product of a feed-forward layer, `expansion` hidden units for each of `channels`, which are a multiple of the
// hidden tile. Hidden unit (channel, e) is at HiddenIndex in the constants and in the packed weights; its shortcut is
// shortcuts[e * period + channel % period] of each row.
struct Hidden {
  const uint32_t* weights;
  size_t words;  // of a row of activations
  size_t channels;
  size_t expansion;
  size_t period;  // a multiple of the hidden tile
  const float* table;  // for each tile of hidden units its multipliers, biases, slopes and sign limits
  bool small_slopes;
};

// The transform of the counts of a product of masks and values: prelu((count - offset) * scale + bias + query + shortcut,
// slope), and its signs. Pointers are to the constants of the first unit.
struct Context {
  const int32_t* offset;
  const float* scale;
  const float* bias;
  const float* slope;
  const float* sign_limit;
  bool small_slopes;
};

// A row of a map under a weighted cross: see docs/operators.md. Rows above and below hold zeros where they lie outside.
struct CrossRow {
  size_t width;
  size_t channels;
  size_t vertical;
  size_t horizontal;
  const float* const* above;  // by distance, from 1 on
  const float* const* below;
  const float* center;
  const float* zeros;         // a position outside
  const float* weights;       // center, vertical distances, horizontal distances: `channels` each
  const float* row_edge;      // one value per channel
  const float* column_edges;  // one value per position and channel
  bool residual;
};

// Windows of an image, next to each other, are where strips of it and of pixels cross: `count` strips, `stride` values from one
// to the next, of which each window has `width` values.
struct Strips {
  const float* values;
  size_t count;
  size_t stride;
  size_t width;
};

// Counts of bytes, one per key, come in blocks.
constexpr size_t kBytesPerBlock = 64;

// What decides which probabilities of a row are above a threshold: see ProbabilityLimit.
struct Probabilities {
  static constexpr size_t kSize = 64;
  static constexpr size_t kMaxRows = 16;
  const uint8_t* low;     // low bytes of exponentials of 16 bits, by how many more bits differ than in the row's best key
  const uint8_t* high;    // their high bytes
  const int32_t* bounds;  // by the same, below which sum of exponentials a probability is above the threshold; they fall
  size_t bound_count;     // the last one is 0
  int32_t error;          // how far a sum may be off
  const uint8_t* missing_keys;  // of the last block: UINT8_MAX for those that don't exist
};

struct KernelSet {
  const char* name;
  size_t unit_tile;    // units whose weights are interleaved
  size_t word_group;   // adjacent words of one unit
  size_t hidden_tile;  // the same of hidden units
  bool pushes_signs;   // how their signs are stored: see PositionOfHidden
  size_t row_tile;     // rows that go through a product together

  // output[row][unit] of all rows and units; `stride` values from one row of the output to the next.
  void (*multiply)(const Rows&, const Weights&, const Affine&, float* output, size_t stride);
  // The same without Affine: the number of differing bits.
  void (*count)(const Rows&, const Weights&, int32_t* output, size_t stride);
  // The same as bytes, where no count is above 255.
  void (*count_bytes)(const Rows&, const Weights&, uint8_t* output, size_t stride);
  // Sets bit i % 32 of word i / 32 for each of the 32 * words values that is below zero.
  void (*pack_signs)(const float* values, size_t words, uint32_t* bits);

  // The projection's values; `residual` may be null. All rows of reals are `stride` values apart. `signs` says which values
  // before the residual are below the projection's sign limit, where it has one.
  void (*project)(const Rows&, const Weights&, const Projection&, const float* shortcut, const float* residual,
                  float* output, size_t stride, const BitRows& signs);
  // The same for a Context, of a multiple of 32 units. `shortcuts` has a pointer for each row, and they are read from
  // `first_unit` on.
  void (*attend)(const Rows&, const Weights&, const Context&, const float* query, const float* const* shortcuts,
                 size_t first_unit, float* output, size_t stride, const BitRows& signs);
  // For each row which hidden values are below their limits, at PositionOfHidden, and the means over each channel's units.
  void (*expand)(const Rows&, const Hidden&, const float* shortcuts, float* means, size_t means_stride, uint32_t* bits,
                 size_t bits_stride);
  // Of rows without gaps: shortcuts[e * period + i] = values[(i * expansion + e) % channels], where CanDeinterleave says so.
  void (*deinterleave)(const float* values, size_t rows, size_t channels, size_t expansion, size_t period,
                       float* shortcuts);
  // Of rows of 32 * words values, without gaps: output[i] = values[i] * factors[i], and pack_below of the output.
  void (*scale_and_pack)(const float* values, size_t rows, size_t words, const float* factors, const float* limits,
                         float* output, uint32_t* bits);
  // Sets a bit for each of the 32 * words values that is below its limit.
  void (*pack_below)(const float* values, const float* limits, size_t words, uint32_t* bits);
  // pack_signs of values[i] + thresholds[i].
  void (*pack_shifted)(const float* values, const float* thresholds, size_t words, uint32_t* bits);
  // Sets a bit for each of the 32 * words counts that is `limit` or less.
  void (*pack_at_most)(const int32_t* counts, int32_t limit, size_t words, uint32_t* bits);
  // Sets a bit for each of whole blocks of bytes that is below the limit.
  void (*pack_bytes_below)(const uint8_t* counts, uint8_t limit, size_t blocks, uint32_t* bits);
  // The same for up to kMaxRows rows of whole blocks, below the limit that the Probabilities give for each. Returns a bit
  // for each row that they can't decide. Counts of missing keys become UINT8_MAX.
  uint32_t (*pack_probable)(uint8_t* counts, size_t rows, size_t blocks, const Probabilities&, uint32_t* masks);
  void (*cross)(const CrossRow&, float* output);
  // The means over `size` x `size` positions of values * factors; `row_stride` values from one row of the map to the next.
  void (*pool)(const float* values, size_t row_stride, size_t size, const float* factors, size_t channels, float* means);

  // sums[i] = a[i] + b[i], times slopes[i] where that is negative; `slopes` may be null.
  void (*add)(const float* a, const float* b, const float* slopes, float* sums, size_t count);
  // results[i] = values[i] * factors[i] + addends[i]; `addends` may be null.
  void (*scale)(const float* values, const float* factors, const float* addends, float* results, size_t count);
  // output[row][unit] = values[row] . weights[unit], rows of `depth` values without gaps. Of the whole fours of terms it sums
  // those at j, j + 4, j + 8, ... for each j, then these sums as (s0 + s1) + (s2 + s3), then the terms that are left.
  void (*multiply_floats)(const float* values, const float* weights, size_t rows, size_t units, size_t depth,
                          float* output, size_t stride);
  // output[window][unit] = biases[unit] + its values * weights[value][unit], strip by strip, from left to right, by fused
  // multiply-adds; `stride` values from one window's output to the next. Null where the processor has none.
  void (*embed)(const Strips&, size_t windows, const float* weights, const float* biases, size_t units, float* output,
                size_t stride);
  // sums[i] = the products of the four values and factors from 4 * i on; those of eight have terms i and i + 4 added first.
  void (*dot_fours)(const float* values, const float* factors, float* sums, size_t count);
  void (*dot_eights)(const float* values, const float* factors, float* sums, size_t count);
};

// The best set that this processor runs, or the one that the environment variable BINARYVIT_KERNELS names: scalar, sse,
// avx2, avx512bw, avx512, neon or dotprod. Null where that is unknown or can't run here; KernelNames says what could.
const KernelSet* SelectKernels();
const char* KernelNames();

// Rearranges `units` rows of `words` words into blocks of unit_tile units: block by block, group of words by group, unit
// by unit. What is missing at the ends is zero. False where there is no memory.
[[nodiscard]] bool PackWeights(const KernelSet&, const uint32_t* rows, size_t units, size_t words,
                               Buffer<uint32_t>* packed);

// a . b, in the order of multiply_floats.
static inline float DotInFours(const float* a, const float* b, size_t count) {
  float sums[4] = {};
  size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (size_t j = 0; j < 4; ++j) sums[j] += a[i + j] * b[i + j];
  }
  float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// Rounds up to a multiple of the tile.
static inline size_t RoundUp(size_t value, size_t tile) { return (value + tile - 1) / tile * tile; }

// The index of a word of a unit among packed weights, of `words` words a unit.
static inline size_t PackedIndex(size_t tile, size_t group, size_t words, size_t unit, size_t word) {
  return unit / tile * tile * RoundUp(words, group) + (word / group * tile + unit % tile) * group + word % group;
}

// PackWeights into `packed`, which has PackedWords words, for tiles of another size; rows are `stride` words apart.
void PackRows(const uint32_t* rows, size_t stride, size_t units, size_t words, size_t tile, size_t group,
              uint32_t* packed);
static inline size_t PackedWords(size_t units, size_t words, size_t tile, size_t group) {
  return RoundUp(units, tile) * RoundUp(words, group);
}

// Whether `deinterleave` applies.
static inline bool CanDeinterleave(size_t tile, size_t channels, size_t expansion) {
  return (expansion == 4 || expansion == 8) && channels % kBitsPerWord == 0 && channels % (4 * tile) == 0;
}

// Hidden units go tile of channels by tile of channels, and within one by e, then by channel.
static inline size_t HiddenIndex(size_t tile, size_t expansion, size_t channel, size_t e) {
  return (channel / tile * expansion + e) * tile + channel % tile;
}

// Where the bit of a hidden unit is: at HiddenIndex, or where signs are pushed, in the word of its lane. Such a word takes
// `expansion` bits of each tile, for as many whole tiles as fit (or 32 bits of one); each bit is shifted in from above.
struct HiddenPosition {
  size_t word;
  size_t bit;
};
static inline size_t TilesPerWord(size_t expansion) { return expansion > kBitsPerWord ? 1 : kBitsPerWord / expansion; }
static inline size_t HiddenWords(const KernelSet& kernels, size_t channels, size_t expansion) {
  const size_t tile = kernels.hidden_tile, tiles = (channels + tile - 1) / tile, share = TilesPerWord(expansion);
  if (!kernels.pushes_signs) return WordsFor(tiles * tile * expansion);
  return (tiles + share - 1) / share * WordsFor(expansion) * tile;
}
static inline HiddenPosition PositionOfHidden(const KernelSet& kernels, size_t channels, size_t expansion,
                                              size_t channel, size_t e) {
  const size_t tile = kernels.hidden_tile, tiles = (channels + tile - 1) / tile, share = TilesPerWord(expansion);
  if (!kernels.pushes_signs) {
    const size_t index = HiddenIndex(tile, expansion, channel, e);
    return {index / kBitsPerWord, index % kBitsPerWord};
  }
  const size_t index = channel / tile, group = index / share, lane = channel % tile;
  const size_t tiles_here = tiles - group * share < share ? tiles - group * share : share;
  const size_t part = e / kBitsPerWord;
  const size_t rest = expansion - part * kBitsPerWord < kBitsPerWord ? expansion - part * kBitsPerWord : kBitsPerWord;
  const size_t pushed = expansion > kBitsPerWord ? rest : expansion * tiles_here;
  const size_t word = (group * WordsFor(expansion) + part) * tile + lane;
  return {word, kBitsPerWord - pushed + index % share * expansion + e % kBitsPerWord};
}

extern const KernelSet kScalarKernels;
#if defined(__x86_64__)
extern const KernelSet kSseKernels, kAvx2Kernels, kAvx512BwKernels, kAvx512Kernels;
#elif defined(__aarch64__)
extern const KernelSet kNeonKernels, kDotprodKernels;
#endif

}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_KERNEL_SET_H_
