/* The kernels of models that keras_binaryvit exports to C. Its docs/operators.md defines what they compute, with the
 * same names. Maps are (height, width, channels), without gaps. Bits are packed 32 channels to a word, the first channel
 * in the lowest bit, a set bit for a negative value, zeros after the last channel.
 *
 * Every product and sum must be rounded to float by itself: a compiler that fuses them would flip bits. Convolutions and
 * dense layers are fused on purpose, as LiteRT's are. */
#ifndef BINARYVIT_KERNELS_H
#define BINARYVIT_KERNELS_H

#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__ARM_FEATURE_MVE) /* Helium */
#include <arm_mve.h>
#elif defined(__ARM_FEATURE_SIMD32) /* the DSP extension */
#include <arm_acle.h>
#endif

#if FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2 || defined(__FAST_MATH__)
#error "This code needs float arithmetic as IEEE 754 has it: no -ffast-math; on 32-bit x86 add -msse2 -mfpmath=sse."
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off") /* GCC knows no other way to say it in a file */
#else
#pragma STDC FP_CONTRACT OFF
#endif

#if defined(__POPCNT__) || defined(__aarch64__)
/* In how many bits two rows differ. */
static inline int32_t bvit_differ(const uint32_t *a, const uint32_t *b, int words) {
  int32_t count = 0;
  for (int i = 0; i < words; ++i) count += __builtin_popcount(a[i] ^ b[i]);
  return count;
}
#elif defined(__ARM_FEATURE_MVE)
static inline int32_t bvit_differ(const uint32_t *a, const uint32_t *b, int words) {
  const uint8x16_t mask_1 = vdupq_n_u8(0x55), mask_2 = vdupq_n_u8(0x33), mask_4 = vdupq_n_u8(0x0F);
  uint32_t count = 0;
  for (; words > 0; words -= 4, a += 4, b += 4) {
    const mve_pred16_t exist = vctp32q((uint32_t)words);
    uint8x16_t x = vreinterpretq_u8_u32(veorq_u32(vldrwq_z_u32(a, exist), vldrwq_z_u32(b, exist)));
    x = vsubq_u8(x, vandq_u8(vshrq_n_u8(x, 1), mask_1));
    x = vaddq_u8(vandq_u8(x, mask_2), vandq_u8(vshrq_n_u8(x, 2), mask_2));
    count = vaddvaq_u8(count, vandq_u8(vaddq_u8(x, vshrq_n_u8(x, 4)), mask_4));
  }
  return (int32_t)count;
}
#else
/* A mask in a register, where an AND can take a shifted operand; GCC prefers constants, and then it can't. */
static inline uint32_t bvit_mask(uint32_t mask) {
#if defined(__arm__) && defined(__GNUC__)
  __asm__("" : "+r"(mask));
#endif
  return mask;
}

/* How many bits are set, of each 4. */
static inline uint32_t bvit_fours(uint32_t x) {
  x -= (x >> 1) & bvit_mask(0x55555555u);
  return (x & bvit_mask(0x33333333u)) + ((x >> 2) & bvit_mask(0x33333333u));
}

/* The count plus the sum of all fours, of which each is 15 at most. */
static inline uint32_t bvit_total(uint32_t fours, uint32_t count) {
  const uint32_t bytes = (fours & bvit_mask(0x0F0F0F0Fu)) + ((fours >> 4) & bvit_mask(0x0F0F0F0Fu));
#if defined(__ARM_FEATURE_SIMD32)
  return __usada8(bytes, 0, count);
#else
  return count + ((bytes * 0x01010101u) >> 24);
#endif
}

static inline int32_t bvit_differ(const uint32_t *a, const uint32_t *b, int words) {
  uint32_t count = 0;
  for (; words > 1; words -= 2, a += 2, b += 2) {
    count = bvit_total(bvit_fours(a[0] ^ b[0]) + bvit_fours(a[1] ^ b[1]), count);
  }
  if (words == 1) count = bvit_total(bvit_fours(*a ^ *b), count);
  return (int32_t)count;
}
#endif

static inline float bvit_prelu(float x, float slope) { return x < 0 ? slope * x : x; }

/* The word moved down by a bit, with the sign of `x` on top. */
static inline uint32_t bvit_push(uint32_t word, float x) {
  union {
    float real;
    uint32_t bits;
  } value;
  value.real = x;
  return word >> 1 | (value.bits & 0x80000000u);
}

/* The signs of values plus thresholds. No threshold is -0, and so is no sum. */
static inline void bvit_pack(const float *values, const float *thresholds, int count, uint32_t *bits) {
  for (int size; count > 0; count -= size) {
    uint32_t word = 0;
    size = count < 32 ? count : 32;
    for (int i = 0; i < size; ++i) word = bvit_push(word, *values++ + *thresholds++);
    *bits++ = word >> (32 - size);
  }
}

/* prelu(differ * multiplier + bias + shortcut, slope) of each unit; `table` has multiplier, bias, slope of each unit.
 * The shortcut has `period` values, which repeat. */
static inline void bvit_project(const uint32_t *bits, int words, const uint32_t *kernel, const float *table, int units,
                                const float *shortcut, int period, float *output) {
  for (const float *end = output + units; output < end;) {
    for (int i = 0; i < period; ++i, kernel += words, table += 3) {
      const float count = (float)bvit_differ(bits, kernel, words);
      *output++ = bvit_prelu(count * table[0] + table[1] + shortcut[i], table[2]);
    }
  }
}

/* Pixels of 0 to 255 as the model's preprocessor prepares them. `table` has the rows scale, offset. */
static inline void bvit_normalize(const uint8_t *pixels, int positions, int channels, const float *table,
                                  float *output) {
  for (int i = 0; i < positions; ++i) {
    for (int c = 0; c < channels; ++c) *output++ = (float)*pixels++ * table[c] + table[channels + c];
  }
}

/* x * y + sum, rounded once; without such an instruction once to double before, which hardly ever shows. */
static inline float bvit_fused(float x, float y, float sum) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(x, y, sum);
#else
  return (float)((double)x * (double)y + (double)sum);
#endif
}

/* The bias plus the products, from left to right. */
static inline void bvit_dense(const float *x, int count, const float *kernel, const float *bias, int units,
                              float *output) {
  for (int u = 0; u < units; ++u) {
    float sum = bias[u];
    for (int i = 0; i < count; ++i) sum = bvit_fused(x[i], *kernel++, sum);
    output[u] = sum;
  }
}

/* The same of each window of a map, row by row, with zeros around the map. `patch` has room for a window. */
static inline void bvit_convolution(const float *x, int height, int width, int channels, const float *kernel,
                                    const float *bias, int rows, int columns, int row_stride, int column_stride,
                                    int top, int left, int output_height, int output_width, int filters, float *patch,
                                    float *output) {
  for (int i = 0; i < output_height * output_width; ++i, output += filters) {
    const int first_row = i / output_width * row_stride - top, first_column = i % output_width * column_stride - left;
    for (int j = 0; j < rows * columns; ++j) {
      const int row = first_row + j / columns, column = first_column + j % columns;
      const int inside = row >= 0 && row < height && column >= 0 && column < width;
      const float *from = x + (row * width + column) * channels;
      for (int c = 0; c < channels; ++c) patch[j * channels + c] = inside ? from[c] : 0;
    }
    bvit_dense(patch, rows * columns * channels, kernel, bias, filters, output);
  }
}

static inline void bvit_relu(float *x, int count) {
  for (int i = 0; i < count; ++i) x[i] = x[i] > 0 ? x[i] : 0;
}

/* `y` is repeated until it is as long as `x`. */
static inline void bvit_add(const float *x, int count, const float *y, int period, float *output) {
  for (int i = 0, j = 0; i < count; ++i, j = j + 1 < period ? j + 1 : 0) output[i] = x[i] + y[j];
}

/* The sum of the positions in their order, over their number. */
static inline void bvit_mean(const float *x, int positions, int channels, float *output) {
  for (int c = 0; c < channels; ++c) {
    float sum = x[c];
    for (int i = 1; i < positions; ++i) sum += x[i * channels + c];
    output[c] = sum / (float)positions;
  }
}

/* BinaryVitFeedForward. `residual` may be null; `output` may be `x` or `residual`. `table` has the rows scale,
 * threshold_1, output_scale, output_shift; `hidden` multiplier_1, bias_1, slope_1 of each unit; `outputs` multiplier_2,
 * bias_2, slope_2 of each channel. */
static inline void bvit_feed_forward(const float *x, const float *residual, int positions, int channels, int expansion,
                                     const uint32_t *kernel_1, const float *hidden, const float *thresholds_2,
                                     const uint32_t *kernel_2, const float *outputs, const float *table, float *reals,
                                     uint32_t *bits, float *output) {
  const int words = (channels + 31) / 32, units = channels * expansion;
  const float share = 1.0f / (float)expansion;
  const float *scale = table + 2 * channels, *shift = table + 3 * channels;
  float *s = reals, *u = reals + channels;
  for (int i = 0; i < positions; ++i, x += channels, output += channels) {
    for (int c = 0; c < channels; ++c) s[c] = x[c] * table[c];
    bvit_pack(s, table + channels, channels, bits);
    bvit_project(bits, words, kernel_1, hidden, units, s, channels, u);
    bvit_pack(u, thresholds_2, units, bits);
    for (int c = 0; c < channels; ++c) {
      float sum = 0;
      for (int e = 0; e < expansion; ++e) sum += u[c * expansion + e];
      u[c] = sum * share; /* what stood there has been read */
    }
    bvit_project(bits, (units + 31) / 32, kernel_2, outputs, channels, u, channels, s);
    for (int c = 0; c < channels; ++c) {
      const float value = s[c] * scale[c] + shift[c];
      output[c] = residual ? value + residual[c] : value;
    }
    if (residual) residual += channels;
  }
}

/* A projection of BinaryVitAttention; `table` has multiplier, bias, slope of each channel. */
static inline void bvit_pack_and_project(const float *x, int channels, const float *thresholds, const uint32_t *kernel,
                                         const float *table, uint32_t *bits, float *output) {
  bvit_pack(x, thresholds, channels, bits);
  bvit_project(bits, (channels + 31) / 32, kernel, table, channels, x, channels, output);
}

/* BinaryVitAttention. `output` may be `x`. Kernels are those of query, key, value, output, reduced; `projections` has
 * multiplier, bias, slope of each of their channels; `table` the rows scale, the thresholds of query, key, value,
 * output, query_threshold, key_threshold, value_threshold, context_scale, context_bias, context_slope, output_scale,
 * output_shift, the threshold of reduced; `exponentials` are exp(-2 d / sqrt(head_dim)) for d of 0 to head_dim. */
static inline void bvit_attention(const float *x, int height, int width, int channels, int heads, int reduction,
                                  int residual, const uint32_t *kernels, const float *projections, const float *table,
                                  const double *exponentials, double threshold, float *reals, uint32_t *bits,
                                  float *output) {
  const int words = (channels + 31) / 32, head_dim = channels / heads, head_words = (head_dim + 31) / 32;
  const int key_width = width / reduction, keys = height / reduction * key_width, key_words = (keys + 31) / 32;
  const int kernel_words = channels * words;
  const float share = 1.0f / (float)(reduction * reduction);
  const float *thresholds = table + channels, *sign_thresholds = table + 5 * channels;
  const float *context = table + 8 * channels;
  const float *scale = table + 11 * channels, *shift = table + 12 * channels;
  float *shortcuts = reals, *a = shortcuts + keys * channels, *b = a + channels, *c = b + channels;
  uint32_t *query_bits = bits + words;
  uint32_t *key_bits = query_bits + head_words;                /* of all keys of a head, then of the next */
  uint32_t *value_bits = key_bits + heads * keys * head_words; /* of all keys of a channel, then of the next */
  uint32_t *value_counts = value_bits + channels * key_words, *mask = value_counts + channels;
  uint32_t *counts = mask + key_words;

  memset(value_bits, 0, (size_t)(channels * (key_words + 1)) * sizeof *bits);
  for (int key = 0; key < keys; ++key) {
    const float *square = x + (key / key_width * width + key % key_width) * reduction * channels;
    float *k = shortcuts + key * channels;
    const float *g = a;
    for (int i = 0; i < channels; ++i) {
      float total = 0;
      for (int row = 0; row < reduction; ++row) {
        float sum = 0;
        for (int column = 0; column < reduction; ++column) {
          sum += square[(row * width + column) * channels + i] * table[i];
        }
        total += sum;
      }
      a[i] = total * share;
    }
    if (reduction > 1) {
      bvit_pack_and_project(a, channels, table + 13 * channels, kernels + 4 * kernel_words,
                            projections + 12 * channels, bits, b);
      g = b;
    }
    bvit_pack_and_project(g, channels, thresholds + channels, kernels + kernel_words, projections + 3 * channels,
                          bits, k);
    bvit_pack_and_project(g, channels, thresholds + 2 * channels, kernels + 2 * kernel_words,
                          projections + 6 * channels, bits, c);
    for (int h = 0; h < heads; ++h) {
      bvit_pack(k + h * head_dim, sign_thresholds + channels + h * head_dim, head_dim,
                key_bits + (h * keys + key) * head_words);
    }
    for (int i = 0; i < channels; ++i) {
      const uint32_t bit = c[i] + sign_thresholds[2 * channels + i] < 0;
      value_bits[i * key_words + key / 32] |= bit << key % 32;
      value_counts[i] += bit;
      k[i] += c[i];
    }
  }

  for (int query = 0; query < height * width; ++query, x += channels, output += channels) {
    const float *shortcut = shortcuts + (query / width / reduction * key_width + query % width / reduction) * channels;
    for (int i = 0; i < channels; ++i) a[i] = x[i] * table[i];
    bvit_pack_and_project(a, channels, thresholds, kernels, projections, bits, b);
    for (int h = 0; h < heads; ++h) {
      const uint32_t *head_keys = key_bits + h * keys * head_words;
      double sums[4] = {0, 0, 0, 0}, least; /* four, as the runtime adds them */
      uint32_t above = 0;
      bvit_pack(b + h * head_dim, sign_thresholds + h * head_dim, head_dim, query_bits);
      for (int key = 0; key < keys; ++key) {
        counts[key] = (uint32_t)bvit_differ(query_bits, head_keys + key * head_words, head_words);
        sums[key < keys / 4 * 4 ? key % 4 : 0] += exponentials[counts[key]];
      }
      least = threshold * ((sums[0] + sums[1]) + (sums[2] + sums[3]));
      while (above <= (uint32_t)head_dim && exponentials[above] > least) ++above;
      memset(mask, 0, (size_t)key_words * sizeof *mask);
      for (int key = 0; key < keys; ++key) mask[key / 32] |= (uint32_t)(counts[key] < above) << key % 32;
      for (int i = h * head_dim; i < (h + 1) * head_dim; ++i) {
        /* -1 for each set bit of the value under the mask, 1 for each other one */
        const int32_t o = bvit_differ(mask, value_bits + i * key_words, key_words) - (int32_t)value_counts[i];
        const float t = (float)o * context[i] + context[channels + i] + b[i] + shortcut[i];
        c[i] = bvit_prelu(t, context[2 * channels + i]);
      }
    }
    bvit_pack_and_project(c, channels, thresholds + 3 * channels, kernels + 3 * kernel_words,
                          projections + 9 * channels, bits, a);
    for (int i = 0; i < channels; ++i) {
      const float value = a[i] * scale[i] + shift[i];
      output[i] = residual ? value + x[i] : value;
    }
  }
}

/* BinaryVitPooling. `weights` has the rows center, vertical distances, horizontal distances, each times the scale;
 * `rows` and `columns` are the operator's constants of each row and column; `zeros` has room for a position. */
static inline void bvit_pooling(const float *x, int height, int width, int channels, int vertical, int horizontal,
                                int residual, const float *weights, const float *rows, const float *columns,
                                float *zeros, float *output) {
  for (int c = 0; c < channels; ++c) zeros[c] = 0;
  for (int i = 0; i < height * width; ++i, x += channels, output += channels) {
    const int row = i / width, column = i % width;
    const float *row_edge = rows + row * channels, *column_edge = columns + column * channels;
    for (int c = 0; c < channels; ++c) output[c] = x[c] * weights[c];
    for (int tap = 1; tap <= vertical + horizontal; ++tap) {
      const int is_vertical = tap <= vertical, distance = is_vertical ? tap : tap - vertical;
      const int at = is_vertical ? row : column, side = is_vertical ? height : width;
      const int step = distance * channels * (is_vertical ? width : 1);
      const float *before = at >= distance ? x - step : zeros, *after = at + distance < side ? x + step : zeros;
      const float *weight = weights + tap * channels;
      for (int c = 0; c < channels; ++c) output[c] += (before[c] + after[c]) * weight[c];
    }
    for (int c = 0; c < channels; ++c) {
      const float sum = output[c] + (row_edge[c] + column_edge[c]);
      output[c] = residual ? sum + x[c] : sum;
    }
  }
}

/* BinaryVitPatchMerging, to a map of half the sides. `table` has the rows scale, threshold; `outputs` multiplier, bias,
 * slope of each unit. */
static inline void bvit_patch_merging(const float *x, int height, int width, int channels, int units,
                                      const uint32_t *kernel, const float *outputs, const float *table, float *s,
                                      uint32_t *bits, float *output) {
  const int words = (channels + 31) / 32;
  for (int i = 0; i < height / 2 * (width / 2); ++i, output += units) {
    const float *square = x + (i / (width / 2) * width + i % (width / 2)) * 2 * channels;
    for (int tap = 0; tap < 4; ++tap) {
      const float *from = square + (tap / 2 * width + tap % 2) * channels;
      for (int c = 0; c < channels; ++c) s[tap * channels + c] = from[c] * table[c];
      bvit_pack(s + tap * channels, table + channels, channels, bits + tap * words);
    }
    for (int c = 0; c < channels; ++c) {
      s[c] = ((s[c] + s[channels + c]) + (s[2 * channels + c] + s[3 * channels + c])) * 0.25f;
    }
    bvit_project(bits, 4 * words, kernel, outputs, units, s, channels, output);
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

#endif /* BINARYVIT_KERNELS_H */
