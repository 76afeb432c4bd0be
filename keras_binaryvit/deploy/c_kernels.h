/* The kernels of models that keras_binaryvit exports to C. docs/operators.md defines what they compute; `bvit_` names are
 * its names. Maps are (height, width, channels), without gaps. Bits are packed 32 channels to a word, the first channel in
 * the lowest bit, a set bit for a negative value, zeros after the last channel.
 *
 * Every product and sum must be rounded to float by itself: a compiler that fuses them would flip bits. */
#ifndef BINARYVIT_KERNELS_H
#define BINARYVIT_KERNELS_H

#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__ARM_FEATURE_SIMD32) /* the DSP extension */
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

/* In how many bits two rows differ. */
static inline int32_t bvit_differ(const uint32_t *a, const uint32_t *b, int words) {
  int32_t count = 0;
#if defined(__POPCNT__) || defined(__aarch64__) || defined(__riscv_zbb)
  for (int i = 0; i < words; ++i) count += __builtin_popcount(a[i] ^ b[i]);
#else
  for (int i = 0; i < words; i += 2) { /* two words together: 8 bits to each 4, then 16 to each 8 */
    uint32_t x = a[i] ^ b[i], y = i + 1 < words ? a[i + 1] ^ b[i + 1] : 0;
    x -= (x >> 1) & 0x55555555u;
    y -= (y >> 1) & 0x55555555u;
    x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u) + (y & 0x33333333u) + ((y >> 2) & 0x33333333u);
    x = (x & 0x0F0F0F0Fu) + ((x >> 4) & 0x0F0F0F0Fu);
#if defined(__ARM_FEATURE_SIMD32)
    count = (int32_t)__usada8(x, 0, (uint32_t)count);
#else
    count += (int32_t)((x * 0x01010101u) >> 24);
#endif
  }
#endif
  return count;
}

static inline float bvit_prelu(float x, float slope) { return x < 0 ? slope * x : x; }

/* Bits of the values that are below their limits. A value plus a threshold is negative where the value is below minus the
 * threshold, which is its limit. */
static inline void bvit_pack(const float *values, const float *limits, int count, uint32_t *bits) {
  for (int first = 0; first < count; first += 32) {
    const int size = count - first < 32 ? count - first : 32;
    uint32_t word = 0;
    for (int i = 0; i < size; ++i) word |= (uint32_t)(values[first + i] < limits[first + i]) << i;
    *bits++ = word;
  }
}

/* prelu(differ * multiplier + bias + shortcut, slope) of each unit; `table` has the rows multiplier, bias, slope. The shortcut
 * has `period` values. */
static inline void bvit_project(const uint32_t *bits, int words, const uint32_t *kernel, const float *table, int units,
                                const float *shortcut, int period, float *output) {
  for (int u = 0, s = 0; u < units; ++u, s = s + 1 < period ? s + 1 : 0) {
    const float count = (float)bvit_differ(bits, kernel + u * words, words);
    output[u] = bvit_prelu(count * table[u] + table[units + u] + shortcut[s], table[2 * units + u]);
  }
}

/* Pixels of 0 to 255 as the model's preprocessor prepares them. `table` has the rows scale, offset. */
static inline void bvit_normalize(const uint8_t *pixels, int positions, int channels, const float *table, float *output) {
  for (int i = 0; i < positions; ++i) {
    for (int c = 0; c < channels; ++c) *output++ = (float)*pixels++ * table[c] + table[channels + c];
  }
}

/* The sum of the products from left to right, plus the bias. */
static inline void bvit_dense(const float *x, int count, const float *kernel, const float *bias, int units, float *output) {
  for (int u = 0; u < units; ++u) {
    float sum = 0;
    for (int i = 0; i < count; ++i) sum += x[i] * *kernel++;
    output[u] = sum + bias[u];
  }
}

/* The same of each window of a map, row by row, with zeros around the map. `patch` has room for a window. */
static inline void bvit_convolution(const float *x, int height, int width, int channels, const float *kernel,
                                    const float *bias, int rows, int columns, int row_stride, int column_stride, int top,
                                    int left, int output_height, int output_width, int filters, float *patch,
                                    float *output) {
  for (int i = 0; i < output_height * output_width; ++i, output += filters) {
    const int first_row = i / output_width * row_stride - top, first_column = i % output_width * column_stride - left;
    for (int j = 0; j < rows * columns; ++j) {
      const int row = first_row + j / columns, column = first_column + j % columns;
      const int inside = row >= 0 && row < height && column >= 0 && column < width;
      for (int c = 0; c < channels; ++c) patch[j * channels + c] = inside ? x[(row * width + column) * channels + c] : 0;
    }
    bvit_dense(patch, rows * columns * channels, kernel, bias, filters, output);
  }
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

/* BinaryVitFeedForward. `residual` may be null; `output` may be `x` or `residual`. `hidden` has the rows multiplier_1,
 * bias_1, slope_1, limit_2; `table` scale, limit_1, multiplier_2, bias_2, slope_2, output_scale, output_shift. */
static inline void bvit_feed_forward(const float *x, const float *residual, int positions, int channels, int expansion,
                                     const uint32_t *kernel_1, const float *hidden, const uint32_t *kernel_2,
                                     const float *table, float *reals, uint32_t *bits, float *output) {
  const int units = channels * expansion, words = (channels + 31) / 32, hidden_words = (units + 31) / 32;
  const float share = 1.0f / (float)expansion;
  float *s = reals, *m = reals + channels;
  uint32_t *hidden_bits = bits + words;
  for (int i = 0; i < positions; ++i, x += channels, output += channels) {
    for (int c = 0; c < channels; ++c) s[c] = x[c] * table[c];
    bvit_pack(s, table + channels, channels, bits);
    memset(hidden_bits, 0, (size_t)hidden_words * sizeof *hidden_bits);
    for (int c = 0, j = 0, shortcut = 0; c < channels; ++c) {
      float sum = 0;
      for (int e = 0; e < expansion; ++e, ++j, shortcut = shortcut + 1 < channels ? shortcut + 1 : 0) {
        const float count = (float)bvit_differ(bits, kernel_1 + j * words, words);
        const float u = bvit_prelu(count * hidden[j] + hidden[units + j] + s[shortcut], hidden[2 * units + j]);
        hidden_bits[j / 32] |= (uint32_t)(u < hidden[3 * units + j]) << j % 32;
        sum = e == 0 ? u : sum + u;
      }
      m[c] = sum * share;
    }
    bvit_project(hidden_bits, hidden_words, kernel_2, table + 2 * channels, channels, m, channels, s);
    for (int c = 0; c < channels; ++c) {
      const float value = s[c] * table[5 * channels + c] + table[6 * channels + c];
      output[c] = residual ? value + residual[c] : value;
    }
    if (residual) residual += channels;
  }
}

/* A projection of BinaryVitAttention; `table` has the rows limit, multiplier, bias, slope. */
static inline void bvit_pack_and_project(const float *x, int channels, const uint32_t *kernel, const float *table,
                                         uint32_t *bits, float *output) {
  bvit_pack(x, table, channels, bits);
  bvit_project(bits, (channels + 31) / 32, kernel, table + channels, channels, x, channels, output);
}

/* BinaryVitAttention. `output` may be `x`. `table` has the operator's rows, with limits for thresholds; `exponentials` are
 * exp(-2 d / sqrt(head_dim)) for d of 0 to head_dim. */
static inline void bvit_attention(const float *x, int height, int width, int channels, int heads, int reduction,
                                  int residual, const uint32_t *kernels, const float *table, const double *exponentials,
                                  double threshold, float *reals, uint32_t *bits, float *output) {
  const int words = (channels + 31) / 32, head_dim = channels / heads, head_words = (head_dim + 31) / 32;
  const int key_width = width / reduction, keys = height / reduction * key_width, key_words = (keys + 31) / 32;
  const int kernel_words = channels * words;
  const float share = 1.0f / (float)(reduction * reduction);
  const float *of_query = table + channels, *of_key = table + 5 * channels, *of_value = table + 9 * channels;
  const float *of_output = table + 13 * channels, *limits = table + 17 * channels, *context = table + 20 * channels;
  const float *scale = table + 23 * channels, *of_reduced = table + 25 * channels;
  float *shortcuts = reals, *a = shortcuts + keys * channels, *b = a + channels, *c = b + channels;
  uint32_t *query_bits = bits + words, *key_bits = query_bits + head_words; /* of all keys of a head, then of the next */
  uint32_t *value_bits = key_bits + heads * keys * head_words;              /* of all keys of a channel */
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
          const float s = square[(row * width + column) * channels + i] * table[i];
          sum = column == 0 ? s : sum + s;
        }
        total = row == 0 ? sum : total + sum;
      }
      a[i] = total * share;
    }
    if (reduction > 1) {
      bvit_pack_and_project(a, channels, kernels + 4 * kernel_words, of_reduced, bits, b);
      g = b;
    }
    bvit_pack_and_project(g, channels, kernels + kernel_words, of_key, bits, k);
    bvit_pack_and_project(g, channels, kernels + 2 * kernel_words, of_value, bits, c);
    for (int h = 0; h < heads; ++h) {
      bvit_pack(k + h * head_dim, limits + channels + h * head_dim, head_dim, key_bits + (h * keys + key) * head_words);
    }
    for (int i = 0; i < channels; ++i) {
      const uint32_t bit = c[i] < limits[2 * channels + i];
      value_bits[i * key_words + key / 32] |= bit << key % 32;
      value_counts[i] += bit;
      k[i] += c[i];
    }
  }

  for (int query = 0; query < height * width; ++query, x += channels, output += channels) {
    const float *shortcut = shortcuts + (query / width / reduction * key_width + query % width / reduction) * channels;
    for (int i = 0; i < channels; ++i) a[i] = x[i] * table[i];
    bvit_pack_and_project(a, channels, kernels, of_query, bits, b);
    for (int h = 0; h < heads; ++h) {
      const uint32_t *head_keys = key_bits + h * keys * head_words;
      double sums[4] = {0, 0, 0, 0}, least; /* four, as the runtime adds them */
      uint32_t above = 0;
      bvit_pack(b + h * head_dim, limits + h * head_dim, head_dim, query_bits);
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
    bvit_pack_and_project(c, channels, kernels + 3 * kernel_words, of_output, bits, a);
    for (int i = 0; i < channels; ++i) {
      const float value = a[i] * scale[i] + scale[channels + i];
      output[i] = residual ? value + x[i] : value;
    }
  }
}

/* BinaryVitPooling. `weights` has the rows center, vertical distances, horizontal distances, each times the scale; `rows` and
 * `columns` are the operator's constants of each row and column. */
static inline void bvit_pooling(const float *x, int height, int width, int channels, int vertical, int horizontal,
                                int residual, const float *weights, const float *rows, const float *columns,
                                float *output) {
  for (int i = 0; i < height * width; ++i, x += channels) {
    const int row = i / width, column = i % width;
    for (int c = 0; c < channels; ++c) {
      const float *weight = weights + c;
      float sum = x[c] * *weight;
      for (int d = 1; d <= vertical; ++d) {
        const float above = row >= d ? x[c - d * width * channels] : 0;
        const float below = row + d < height ? x[c + d * width * channels] : 0;
        sum += (above + below) * *(weight += channels);
      }
      for (int d = 1; d <= horizontal; ++d) {
        const float left = column >= d ? x[c - d * channels] : 0;
        const float right = column + d < width ? x[c + d * channels] : 0;
        sum += (left + right) * *(weight += channels);
      }
      sum += rows[row * channels + c] + columns[column * channels + c];
      *output++ = residual ? sum + x[c] : sum;
    }
  }
}

/* BinaryVitPatchMerging to a map of half the sides. `table` has the rows scale, limit; `outputs` multiplier, bias, slope. */
static inline void bvit_patch_merging(const float *x, int height, int width, int channels, int units,
                                      const uint32_t *kernel, const float *table, const float *outputs, float *s,
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
