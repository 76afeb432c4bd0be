// LceBconv2d: a convolution of +-1 with +-1. Positions of the map are rows of a matrix product. If the kernel has several
// taps or a stride, each task gathers its rows first, so that they are still in the cache for the product.
#include <cmath>
#include <cstring>

#include "ops/lce/window.h"
#include "ops/op.h"

namespace binaryvit {
namespace {

constexpr size_t kRowsPerTask = 64;
constexpr size_t kScratchWords = size_t{1} << 17;  // half a megabyte
constexpr int kTaskAlignment = 8;                  // rows of the largest tile

enum Activation : int { kNone = 0, kRelu = 1, kReluN1To1 = 2, kRelu6 = 3 };  // as TFLite's schema numbers them

struct LceBconv2d {
  bool Prepare(const NodeView& node, const Options& options);
  bool Invoke(const NodeView& node);

 private:
  bool ReadOptions(const NodeView& node, const Options& options);
  bool ReadShapes(const NodeView& node);
  bool ReadTransform(const NodeView& node);
  bool PackFilter(const NodeView& node);
  bool PlanTasks(const NodeView& node);
  void RunTask(const KernelSet& kernels, const uint32_t* input, void* output, size_t first, size_t last, int thread);
  void GatherRow(const uint32_t* input, size_t position, size_t group, uint32_t* row) const;
  void AddPadding(size_t position, int32_t* doubled) const;
  void Transform(const int32_t* doubled, void* output, size_t position) const;

  size_t UnitsPerGroup() const { return units / groups; }
  size_t Taps() const { return static_cast<size_t>(rows.size) * static_cast<size_t>(columns.size); }
  size_t RowWords() const { return Taps() * group_words; }
  bool PadsZeros() const { return padding == kSame && pad_value == 0; }
  bool IsInside(size_t position) const;

  // Options.
  Window rows = {};
  Window columns = {};
  int channels = 0;
  int padding = 0;
  int pad_value = 0;
  int activation = 0;

  // Shapes.
  size_t batch = 0;
  size_t units = 0;
  size_t groups = 0;
  size_t input_words = 0;  // of a position of the map
  size_t group_words = 0;
  int output_type = 0;

  // Constants, packed once.
  bool packed = false;
  Buffer<uint32_t>* weights = nullptr;  // one for each group
  size_t transform_stride = 0;          // from one group's transform to the next one's
  Buffer<float> multiplier;
  Buffer<float> bias;
  Buffer<int32_t> thresholds;  // on twice the number of differing bits
  Buffer<int32_t> padding_sums;  // of each tap and unit: correction of twice the number where the tap is on zeros
  bool clamped = false;
  int32_t clamp_min = 0;
  int32_t clamp_max = 0;

  // Tasks.
  bool gathers = false;
  size_t rows_per_task = 0;
  Buffer<uint32_t> gathered;  // rows_per_task rows for each thread
  Buffer<int32_t> counts;

 public:
  ~LceBconv2d() { FreeWeights(); }

 private:
  void FreeWeights() {
    for (size_t group = 0; weights && group < groups; ++group) weights[group].~Buffer();
    std::free(weights);
    weights = nullptr;
  }
};

bool LceBconv2d::ReadOptions(const NodeView& node, const Options& options) {
  return node.ReadOption(options, "stride_height", 1, INT32_MAX, &rows.stride) &&
         node.ReadOption(options, "stride_width", 1, INT32_MAX, &columns.stride) &&
         node.ReadOption(options, "dilation_height_factor", 1, INT32_MAX, &rows.dilation) &&
         node.ReadOption(options, "dilation_width_factor", 1, INT32_MAX, &columns.dilation) &&
         node.ReadOption(options, "padding", kSame, kValid, &padding) &&
         node.ReadOption(options, "pad_values", 0, 1, &pad_value) &&
         node.ReadOption(options, "channels_in", 1, INT32_MAX, &channels) &&
         node.ReadOption(options, "fused_activation_function", kNone, kRelu6, &activation);
}

bool LceBconv2d::ReadShapes(const NodeView& node) {
  const litert::Tensor* input = node.Input(0);
  const litert::Tensor* filter = node.Input(1);
  if (!node.CheckType(input, "input", litert::kInt32) || !node.CheckRank(input, "input", 4)) return false;
  if (!node.CheckConstant(filter, "filter", litert::kInt32, 4)) return false;

  input_words = static_cast<size_t>(input->dims->data[3]);
  if (WordsFor(static_cast<size_t>(channels)) != input_words) {
    return node.Fail("%d channels need %zu words, but the input has %zu", channels,
                     WordsFor(static_cast<size_t>(channels)), input_words);
  }
  units = static_cast<size_t>(filter->dims->data[0]);
  rows.size = filter->dims->data[1];
  columns.size = filter->dims->data[2];
  group_words = static_cast<size_t>(filter->dims->data[3]);
  if (input_words % group_words != 0) {
    return node.Fail("the filter has %zu words of channels, which doesn't divide the input's %zu", group_words,
                     input_words);
  }
  const size_t new_groups = input_words / group_words;
  if (new_groups > 1 && static_cast<size_t>(channels) != input_words * kBitsPerWord) {
    return node.Fail("%d channels don't split into %zu groups of whole words", channels, new_groups);
  }
  if (units % new_groups != 0) return node.Fail("%zu filters don't split into %zu groups", units, new_groups);
  if (!packed) groups = new_groups;
  if (groups != new_groups) return node.Fail("the number of groups changed from %zu to %zu", groups, new_groups);

  // Twice the number of bits of a row must fit into an int32. The filter's data exists, so its product doesn't overflow.
  if (RowWords() >= (size_t{1} << 30) / kBitsPerWord) return node.Fail("a filter has 2^30 bits or more");

  batch = static_cast<size_t>(input->dims->data[0]);
  rows.input = input->dims->data[1];
  columns.input = input->dims->data[2];
  if (!rows.Place(static_cast<Padding>(padding)) || !columns.Place(static_cast<Padding>(padding))) {
    return node.Fail("a filter of %d x %d with dilations %d x %d is larger than the map of %d x %d", rows.size,
                     columns.size, rows.dilation, columns.dilation, rows.input, columns.input);
  }
  return true;
}

bool LceBconv2d::ReadTransform(const NodeView& node) {
  const litert::Tensor* output = node.Output(0);
  const auto count = static_cast<size_t>(units);
  const auto check = [&](const litert::Tensor* tensor, const char* role, litert::Type type) {
    if (!node.CheckConstant(tensor, role, type, 1)) return false;
    if (static_cast<size_t>(tensor->dims->data[0]) == count) return true;
    return node.Fail("the %s must have %zu values, one per filter, but has %d", role, count, tensor->dims->data[0]);
  };
  output_type = output->type;
  if (output_type == litert::kInt32) {
    if (!check(node.Input(4), "threshold", litert::kInt32)) return false;
    if (!thresholds.Resize(count)) return node.FailForMemory();
    const auto* source = static_cast<const int32_t*>(node.Input(4)->data);
    for (size_t unit = 0; unit < count; ++unit) {
      // Counts are below 2^30, so thresholds may be clamped to that range.
      constexpr int32_t limit = (int32_t{1} << 30) - 1;
      const int32_t threshold = source[unit] > limit ? limit : source[unit] < -limit ? -limit : source[unit];
      thresholds[unit] = 2 * threshold;
    }
    return true;
  }
  if (output_type != litert::kFloat32 && output_type != litert::kInt8) {
    return node.Fail("the output must be float32, int8 or int32");
  }
  if (!check(node.Input(2), "multiplier", litert::kFloat32) || !check(node.Input(3), "bias", litert::kFloat32)) {
    return false;
  }
  double scale = 1, zero_point = 0;
  if (output_type == litert::kInt8) {
    scale = output->quantization.scale;
    zero_point = output->quantization.zero_point;
    if (output->quantization_details.type != litert::kAffineQuantization || !(scale > 0) || !std::isfinite(scale)) {
      return node.Fail("the int8 output must have a positive scale");
    }
  }

  // In the order of LCE: the affine transform in doubles, rounded once, then clamps on K - 2 * count, mirrored.
  const auto bits = static_cast<int32_t>(Taps() * (static_cast<size_t>(channels) / groups));
  const size_t group_units = UnitsPerGroup();
  transform_stride = RoundUp(group_units, node.session.kernels->unit_tile);
  if (!multiplier.Resize(groups * transform_stride) || !bias.Resize(groups * transform_stride)) {
    return node.FailForMemory();
  }
  int32_t low = -bits, high = bits;
  if (activation != kNone) low = activation == kReluN1To1 ? -1 : 0;
  if (activation == kReluN1To1) high = 1;
  if (activation == kRelu6 && bits > 6) high = 6;
  clamp_min = bits - high;
  clamp_max = bits - low;
  // If only the affine transform needs twice the number of differing bits, the factor 2 goes into the multiplier.
  clamped = activation != kNone || output_type != litert::kFloat32 || PadsZeros();
  const auto* source_multiplier = static_cast<const float*>(node.Input(2)->data);
  const auto* source_bias = static_cast<const float*>(node.Input(3)->data);
  for (size_t unit = 0; unit < count; ++unit) {
    const auto factor = static_cast<float>(-1 * static_cast<double>(source_multiplier[unit]) / scale);
    if (std::isfinite(factor) && !std::isfinite(2 * factor)) clamped = true;
  }
  for (size_t unit = 0; unit < count; ++unit) {
    const double factor = source_multiplier[unit];
    const size_t index = unit / group_units * transform_stride + unit % group_units;
    multiplier[index] = static_cast<float>(-1 * factor / scale) * (clamped ? 1.0f : 2.0f);
    bias[index] = static_cast<float>((source_bias[unit] + static_cast<double>(bits) * factor) / scale + zero_point);
  }
  return true;
}

bool LceBconv2d::PackFilter(const NodeView& node) {
  if (packed) return true;
  const auto* filter = static_cast<const uint32_t*>(node.Input(1)->data);
  weights = static_cast<Buffer<uint32_t>*>(std::calloc(groups, sizeof(Buffer<uint32_t>)));
  if (!weights) return node.FailForMemory();
  for (size_t group = 0; group < groups; ++group) {
    new (&weights[group]) Buffer<uint32_t>();
    const uint32_t* source = filter + group * UnitsPerGroup() * RowWords();
    if (!PackWeights(*node.session.kernels, source, UnitsPerGroup(), RowWords(), &weights[group])) {
      FreeWeights();
      return node.FailForMemory();
    }
  }
  if (PadsZeros()) {
    // A gathered zero counts the bits of the tap's weights; a product with a true zero counts half of its channels.
    if (!padding_sums.Resize(Taps() * units)) return node.FailForMemory();
    const auto group_channels = static_cast<int32_t>(static_cast<size_t>(channels) / groups);
    for (size_t unit = 0; unit < units; ++unit) {
      for (size_t tap = 0; tap < Taps(); ++tap) {
        int32_t ones = 0;
        for (size_t word = 0; word < group_words; ++word) {
          ones += __builtin_popcount(filter[(unit * Taps() + tap) * group_words + word]);
        }
        padding_sums[tap * units + unit] = group_channels - 2 * ones;
      }
    }
  }
  packed = true;
  return true;
}

bool LceBconv2d::PlanTasks(const NodeView& node) {
  const int threads = node.session.pool.threads();
  const size_t positions = batch * static_cast<size_t>(rows.output) * static_cast<size_t>(columns.output);
  gathers = Taps() > 1 || rows.stride > 1 || columns.stride > 1;
  rows_per_task = kRowsPerTask;
  if (threads > 1) {  // several tasks per thread, so that none waits long for another
    const size_t share = RoundUp(positions / (4 * static_cast<size_t>(threads)) + 1, kTaskAlignment);
    if (share < rows_per_task) rows_per_task = share;
  }
  const size_t largest = RowWords() > units ? RowWords() : units;
  while (rows_per_task > kTaskAlignment && rows_per_task * largest > kScratchWords) rows_per_task /= 2;
  const size_t scratch_rows = rows_per_task * static_cast<size_t>(threads);
  if (gathers && !gathered.Resize(scratch_rows * RowWords())) return node.FailForMemory();
  const bool counts_needed = output_type != litert::kFloat32 || PadsZeros();
  if (counts_needed && !counts.Resize(scratch_rows * units)) return node.FailForMemory();
  return true;
}

bool LceBconv2d::Prepare(const NodeView& node, const Options& options) {
  if (!node.CheckCounts(5, 1) || !ReadOptions(node, options) || !ReadShapes(node)) return false;
  if (!ReadTransform(node) || !PackFilter(node) || !PlanTasks(node)) return false;
  const size_t depth = output_type == litert::kInt32 ? WordsFor(units) : units;
  const int64_t dims[] = {static_cast<int64_t>(batch), rows.output, columns.output, static_cast<int64_t>(depth)};
  return node.ResizeOutput(0, dims, 4);
}

bool LceBconv2d::Invoke(const NodeView& node) {
  const auto* input = static_cast<const uint32_t*>(node.Input(0)->data);
  void* output = node.Output(0)->data;
  const KernelSet& kernels = *node.session.kernels;
  const size_t positions = batch * static_cast<size_t>(rows.output) * static_cast<size_t>(columns.output);
  node.session.pool.ParallelFor((positions + rows_per_task - 1) / rows_per_task, [&](size_t task, int thread) {
    const size_t first = task * rows_per_task;
    const size_t last = first + rows_per_task < positions ? first + rows_per_task : positions;
    RunTask(kernels, input, output, first, last, thread);
  });
  return true;
}

void LceBconv2d::RunTask(const KernelSet& kernels, const uint32_t* input, void* output, size_t first, size_t last,
                         int thread) {
  const size_t offset = static_cast<size_t>(thread) * rows_per_task;
  bool direct = output_type == litert::kFloat32;
  for (size_t position = first; direct && PadsZeros() && position < last; ++position) direct = IsInside(position);
  int32_t* count = direct ? nullptr : counts.data() + offset * units;

  for (size_t group = 0; group < groups; ++group) {
    Rows task_rows = {input + first * input_words + group * group_words, input_words, last - first};
    if (gathers) {
      uint32_t* row = gathered.data() + offset * RowWords();
      task_rows = {row, RowWords(), last - first};
      for (size_t position = first; position < last; ++position, row += RowWords()) {
        GatherRow(input, position, group, row);
      }
    }
    const Weights packed_weights = {weights[group].data(), UnitsPerGroup(), RowWords()};
    const size_t unit = group * UnitsPerGroup();
    if (direct) {
      const size_t index = group * transform_stride;
      const Affine affine = {multiplier.data() + index, bias.data() + index, clamped, clamp_min, clamp_max};
      kernels.multiply(task_rows, packed_weights, affine, static_cast<float*>(output) + first * units + unit, units);
    } else {
      kernels.count(task_rows, packed_weights, count + unit, units);
    }
  }
  for (size_t position = first; !direct && position < last; ++position, count += units) {
    for (size_t unit = 0; unit < units; ++unit) count[unit] *= 2;
    if (PadsZeros()) AddPadding(position, count);
    Transform(count, output, position);
  }
}

void LceBconv2d::GatherRow(const uint32_t* input, size_t position, size_t group, uint32_t* row) const {
  const auto p = static_cast<int64_t>(position);
  const int64_t x = p % columns.output, y = p / columns.output % rows.output;
  const int64_t image = p / columns.output / rows.output * rows.input;
  const size_t row_of_taps = static_cast<size_t>(columns.size) * group_words;
  const int64_t left = columns.At(x, 0);
  const bool adjacent = groups == 1 && (columns.dilation == 1 || columns.size == 1) && left >= 0 &&
                        left + columns.size <= columns.input;
  for (int tap_y = 0; tap_y < rows.size; ++tap_y, row += row_of_taps) {
    const int64_t in_y = rows.At(y, tap_y);
    if (in_y < 0 || in_y >= rows.input) {
      std::memset(row, 0, row_of_taps * sizeof *row);
      continue;
    }
    const uint32_t* source = input + static_cast<size_t>((image + in_y) * columns.input) * input_words;
    if (adjacent) {
      std::memcpy(row, source + static_cast<size_t>(left) * input_words, row_of_taps * sizeof *row);
      continue;
    }
    for (int tap_x = 0; tap_x < columns.size; ++tap_x) {
      const int64_t in_x = columns.At(x, tap_x);
      uint32_t* target = row + static_cast<size_t>(tap_x) * group_words;
      if (in_x < 0 || in_x >= columns.input) {
        std::memset(target, 0, group_words * sizeof *row);
      } else {
        const uint32_t* words = source + static_cast<size_t>(in_x) * input_words + group * group_words;
        std::memcpy(target, words, group_words * sizeof *row);
      }
    }
  }
}

bool LceBconv2d::IsInside(size_t position) const {
  const auto p = static_cast<int64_t>(position);
  const int64_t x = p % columns.output, y = p / columns.output % rows.output;
  return rows.At(y, 0) >= 0 && rows.At(y, rows.size - 1) < rows.input && columns.At(x, 0) >= 0 &&
         columns.At(x, columns.size - 1) < columns.input;
}

// Corrects the counts of a position for padding with zeros.
void LceBconv2d::AddPadding(size_t position, int32_t* doubled) const {
  if (IsInside(position)) return;
  const auto p = static_cast<int64_t>(position);
  const int64_t x = p % columns.output, y = p / columns.output % rows.output;
  const int32_t* sums = padding_sums.data();
  for (int tap_y = 0; tap_y < rows.size; ++tap_y) {
    const int64_t in_y = rows.At(y, tap_y);
    for (int tap_x = 0; tap_x < columns.size; ++tap_x, sums += units) {
      const int64_t in_x = columns.At(x, tap_x);
      if (in_y >= 0 && in_y < rows.input && in_x >= 0 && in_x < columns.input) continue;
      for (size_t unit = 0; unit < units; ++unit) doubled[unit] += sums[unit];
    }
  }
}

// Rounds to the nearest integer, halves away from zero, within [-128, 127]. The constant is the largest float below 1/2.
int8_t RoundToInt8(float x) {
  x = x > -128.0f ? x : -128.0f;
  x = x < 127.0f ? x : 127.0f;
  return static_cast<int8_t>(x + std::copysign(0.49999997f, x));
}

void LceBconv2d::Transform(const int32_t* doubled, void* output, size_t position) const {
  if (output_type == litert::kInt32) {
    uint32_t* bits = static_cast<uint32_t*>(output) + position * WordsFor(units);
    for (size_t first = 0; first < units; first += kBitsPerWord) {
      const size_t count = units - first < kBitsPerWord ? units - first : kBitsPerWord;
      uint32_t word = 0;
      for (size_t i = 0; i < count; ++i) {
        word |= static_cast<uint32_t>(doubled[first + i] > thresholds[first + i]) << i;
      }
      *bits++ = word;
    }
    return;
  }
  const size_t group_units = UnitsPerGroup();
  for (size_t unit = 0; unit < units; ++unit) {
    const size_t index = groups == 1 ? unit : unit / group_units * transform_stride + unit % group_units;
    int32_t x = doubled[unit] < clamp_max ? doubled[unit] : clamp_max;
    x = x > clamp_min ? x : clamp_min;
    const float y = static_cast<float>(x) * multiplier[index] + bias[index];
    if (output_type == litert::kFloat32) {
      static_cast<float*>(output)[position * units + unit] = y;
    } else {
      static_cast<int8_t*>(output)[position * units + unit] = RoundToInt8(y);
    }
  }
}

}  // namespace

const OpType kLceBconv2d = MakeOpType<LceBconv2d>("LceBconv2d");

}  // namespace binaryvit
