// What LiteRT's operators do to each position of a map by itself, from one convolution to the next: shortcuts, shifts and
// slopes, an expansion's TILE and its mean, signs. LiteRT runs each of them over the whole map, which is larger than
// the caches. This operator runs a subset of nodes over the map together, a few positions at a time.
//
// Sums, products and slopes are rounded as in LiteRT. XNNPACK fuses the multiply-adds of convolutions, and multiplies by
// zeros, which turns an infinity into a NaN; this operator does neither.
#include <cstring>

#include "ops/builtin/pointwise_action.h"

namespace binaryvit {
namespace {

constexpr size_t kBlockValues = 4096;  // of the widest value in a block of rows; several fit in the first cache
constexpr size_t kMaxRows = 64;
constexpr size_t kSpread = 64;  // copies of a single number
constexpr int kMaxPasses = 16;  // through all values, for a place in scratch memory
constexpr int kNone = -1;
constexpr size_t kMaxDot = 8;  // channels of a unit for which there is a kernel

// Rows of values, or of words. Those that only this subset needs are in scratch memory, a block of rows at a time.
struct Value {
  int tensor;  // of the model, or kNone
  size_t rows;
  size_t width;
  bool computed;  // by a step
  bool in_scratch;
  size_t offset;  // in the scratch memory, of values
  int uses;
  size_t last_use;  // a step
};

// output = action(first, second), and for each channel slope where it is negative. Numbers are those of values, or kNone.
struct Step {
  Kind kind;
  int first;
  int second;  // addend, factor, filter or shift
  int third;   // bias
  int slope;
  int output;
  size_t channels;
  Clamp clamp;
  size_t spans;  // index of the first unit's
  void (*dot)(const float* values, const float* factors, float* sums, size_t count);  // where spans are alike, or null
  size_t filter;  // for `dot`: index in the filters
  bool skipped;  // fused into another step
};

struct Pointwise {
  static bool Supports(const NodeView& node) {
    Action action;
    return Describe(node, &action);
  }
  bool Prepare(const NodeView& node, const Options&);
  bool Invoke(const NodeView& node);

 private:
  bool Append(const NodeView& node, const NodeView& subset);
  void ChooseDot(const KernelSet& kernels, const float* filter, const Action& action, Step* step);
  int ValueOf(const NodeView& node, int input, size_t rows, size_t width);
  int NewValue(int tensor, size_t rows, size_t width, bool computed, bool in_scratch);
  Step* StepOf(int value);
  bool IsPrivate(int value) const { return values[Index(value)].in_scratch && values[Index(value)].uses == 1; }
  void Fuse();
  bool PlaceValues(const NodeView& node);
  void Run(const NodeView& node, const Step& step, size_t first, size_t count, float* memory) const;
  void ResolveTensors(const NodeView& node);
  float* RowsOf(int value, size_t first, float* memory) const;
  const float* RowOf(int value, size_t first, size_t row, float* memory) const;

  static size_t Index(int value) { return static_cast<size_t>(value); }

  Buffer<Value> values;
  size_t value_count = 0;
  Buffer<Step> steps;
  size_t step_count = 0;
  Buffer<Span> spans;
  size_t span_count = 0;
  Buffer<float> filters;  // those of steps with a `dot`
  size_t filter_size = 0;
  Buffer<float*> data;  // of each value that is a tensor

  size_t block_rows = 0;
  size_t scratch_size = 0;  // of a thread
  Buffer<float> scratch;
};

int Pointwise::NewValue(int tensor, size_t rows, size_t width, bool computed, bool in_scratch) {
  values[value_count] = {tensor, rows, width, computed, in_scratch, 0, 0, 0};
  return static_cast<int>(value_count++);
}

// The value of an input: what a step has computed, or else a tensor.
int Pointwise::ValueOf(const NodeView& node, int input, size_t rows, size_t width) {
  const int tensor = node.InputIndex(input);
  for (size_t i = 0; i < value_count; ++i) {
    if (values[i].tensor == tensor && (values[i].computed || (values[i].rows == rows && values[i].width == width))) {
      return static_cast<int>(i);
    }
  }
  return NewValue(tensor, rows, width, false, false);
}

// There is a kernel for units that each read the next four or eight channels. It needs the filters next to each other.
void Pointwise::ChooseDot(const KernelSet& kernels, const float* filter, const Action& action, Step* step) {
  const size_t size = action.channels / action.width;
  if ((size != 4 && size != kMaxDot) || action.channels % action.width != 0) return;
  for (size_t unit = 0; unit < action.width; ++unit) {
    const Span& span = spans[step->spans + unit];
    if (span.count != size || span.first != unit * size) return;
    std::memcpy(filters.data() + filter_size + unit * size, filter + span.weights, size * sizeof(float));
  }
  step->dot = size == 4 ? kernels.dot_fours : kernels.dot_eights;
  step->filter = filter_size;
  filter_size += action.channels;
}

bool Pointwise::Append(const NodeView& node, const NodeView& subset) {
  Action action;
  if (!Describe(node, &action)) {
    return node.Fail("the shapes of a node no longer fit: give inputs of another size, or load without this delegate");
  }
  const int output_tensor = node.OutputIndex(0);
  bool is_known = false;
  for (size_t i = 0; i < value_count; ++i) is_known |= values[i].tensor == output_tensor;
  for (int i = 0; i < node.InputCount(); ++i) is_known |= node.InputIndex(i) == output_tensor;
  if (is_known) return node.Fail("two nodes compute one tensor, or one is needed before it is computed");
  Step step = {action.kind, 0, kNone, kNone, kNone, 0, action.channels, action.clamp, 0, nullptr, 0, false};
  step.first = ValueOf(node, action.main, action.rows, action.channels);
  const auto constant = [&](int input) {  // or an operand of all rows
    const size_t elements = Elements(*node.Input(input));
    const size_t width = elements % action.channels == 0 ? action.channels : 1;
    return ValueOf(node, input, elements / width, width);
  };
  const bool has_third = node.InputCount() == 3 && node.InputIndex(2) != -1;
  switch (action.kind) {
    case kAdd:
    case kMultiply:
      // All but the last addition of ADD_N.
      for (int i = 1; i < node.InputCount() - 1; ++i) {
        step.second = constant(i);
        step.output = NewValue(kNone, action.rows, action.width, true, true);
        steps[step_count++] = step;
        step.first = step.output;
      }
      step.second = constant(node.InputCount() == 2 ? 1 - action.main : node.InputCount() - 1);
      break;
    case kSlope:
      step.slope = constant(1);
      break;
    case kScale:
      step.second = constant(1);
      if (has_third) step.third = constant(2);
      break;
    case kMean: {
      const auto* filter = static_cast<const float*>(node.Input(1)->data);
      const auto group_channels = static_cast<size_t>(node.Input(1)->dims->data[3]);
      step.second = ValueOf(node, 1, action.width, group_channels);
      if (has_third) step.third = ValueOf(node, 2, 1, action.width);
      step.spans = span_count;
      for (size_t unit = 0; unit < action.width; ++unit) {
        spans[span_count++] = SpanOf(filter, unit, action.width, group_channels, action.channels / group_channels);
      }
      ChooseDot(*node.session.kernels, filter, action, &step);
      break;
    }
    case kTile:
    case kSigns:
      break;
  }
  step.output = NewValue(output_tensor, action.rows, action.width, true, !subset.IsOutput(output_tensor));
  steps[step_count++] = step;

  const litert::IntArray& shape = *node.Input(action.main)->dims;
  int64_t dims[kMaxRank];
  for (int i = 0; i < shape.size; ++i) dims[i] = shape.data[i];
  dims[shape.size - 1] = static_cast<int64_t>(action.width);
  return node.ResizeOutput(0, dims, shape.size);
}

// The step that computes a value which nothing else needs.
Step* Pointwise::StepOf(int value) {
  if (value == kNone || !IsPrivate(value)) return nullptr;
  for (size_t i = 0; i < step_count; ++i) {
    if (steps[i].output == value && !steps[i].skipped) return &steps[i];
  }
  return nullptr;
}

// Fuses pairs of steps, which need no value in between.
void Pointwise::Fuse() {
  for (size_t i = 0; i < step_count; ++i) {
    for (const int value : {steps[i].first, steps[i].second, steps[i].third, steps[i].slope}) {
      if (value != kNone) ++values[Index(value)].uses;
    }
  }
  for (size_t i = 0; i < step_count; ++i) {
    Step& step = steps[i];
    if (step.kind == kAdd && StepOf(step.first) && StepOf(step.first)->kind == kTile &&
        values[Index(step.second)].width == step.channels) {
      const int other = step.first;
      step.first = step.second;
      step.second = other;
    }
    Step* before = StepOf(step.kind == kAdd ? step.second : step.first);
    if (!before) continue;
    if (step.kind == kAdd && before->kind == kTile) {
      step.second = before->first;  // narrower than the sum: it repeats
      before->skipped = true;
    } else if (step.kind == kSlope && before->kind == kAdd && before->slope == kNone) {
      const int output = step.output, slope = step.slope;
      step = *before;
      step.output = output;
      step.slope = slope;
      before->skipped = true;
    } else if (step.kind == kSigns && before->kind == kAdd && before->slope == kNone &&
               step.channels % kBitsPerWord == 0 && values[Index(before->second)].rows == 1 &&
               values[Index(before->second)].width == step.channels) {
      step.first = before->first;
      step.second = before->second;
      before->skipped = true;
    }
  }
}

// Places values in scratch memory. A place is free again after the last step that reads it.
bool Pointwise::PlaceValues(const NodeView& node) {
  size_t widest = 1;
  for (size_t i = 0; i < step_count; ++i) {
    const Step& step = steps[i];
    if (step.skipped) continue;
    const size_t width = values[Index(step.output)].width;
    widest = width > widest ? width : widest;
    for (const int value : {step.first, step.second}) {
      if (value != kNone) values[Index(value)].last_use = i;
    }
  }
  block_rows = kBlockValues / widest;
  block_rows = block_rows < 1 ? 1 : block_rows > kMaxRows ? kMaxRows : block_rows;

  scratch_size = 0;
  for (size_t i = 0; i < step_count; ++i) {
    if (steps[i].skipped || !values[Index(steps[i].output)].in_scratch) continue;
    Value& value = values[Index(steps[i].output)];
    const size_t size = RoundUp(block_rows * value.width, kAlignment / sizeof(float));
    // The first place that no value in use overlaps, or the end of the memory if that takes too many passes to find.
    value.offset = 0;
    bool moved = true;
    for (int pass = 0; moved && pass < kMaxPasses; ++pass) {
      moved = false;
      for (size_t j = 0; j < i; ++j) {
        const Value& other = values[Index(steps[j].output)];
        if (steps[j].skipped || !other.in_scratch || other.last_use < i) continue;
        const size_t end = other.offset + RoundUp(block_rows * other.width, kAlignment / sizeof(float));
        if (value.offset < end && other.offset < value.offset + size) {
          value.offset = end;
          moved = true;
        }
      }
    }
    if (moved) value.offset = scratch_size;
    scratch_size = value.offset + size > scratch_size ? value.offset + size : scratch_size;
  }
  const auto threads = static_cast<size_t>(node.session.pool.threads());
  return scratch.Resize(scratch_size * threads) && data.Resize(value_count);
}

bool Pointwise::Prepare(const NodeView& node, const Options&) {
  size_t most_values = 0, most_spans = 0;
  for (size_t i = 0; i < node.NodeCount(); ++i) {
    const NodeView part = node.At(i);
    most_values += 2 * static_cast<size_t>(part.InputCount()) + static_cast<size_t>(part.OutputCount());
    const litert::Tensor* filter = part.InputCount() > 1 ? part.Input(1) : nullptr;
    if (part.BuiltinCode() == litert::kBuiltinConv2d && filter && filter->dims && filter->dims->size == 4) {
      most_spans += static_cast<size_t>(filter->dims->data[0]);
    }
  }
  if (!values.Resize(most_values) || !steps.Resize(most_values) || !spans.Resize(most_spans) ||
      !filters.Resize(kMaxDot * most_spans)) {
    return node.FailForMemory();
  }
  value_count = step_count = span_count = filter_size = 0;
  for (size_t i = 0; i < node.NodeCount(); ++i) {
    if (!Append(node.At(i), node)) return false;
  }
  Fuse();
  return PlaceValues(node) || node.FailForMemory();
}

// Calls body(first, size) for parts of a row over which something narrower repeats.
template <typename Body>
void ForRepeats(size_t count, size_t width, const Body& body) {
  for (size_t i = 0; i < count; i += width) body(i, count - i < width ? count - i : width);
}

void SlopeRow(const float* x, const float* slope, float* to, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const float scaled = x[i] * slope[i];
    to[i] = x[i] < 0 ? scaled : x[i];
  }
}

void PackRow(const KernelSet& kernels, const float* from, size_t channels, uint32_t* bits) {
  const size_t whole = channels / kBitsPerWord, rest = channels % kBitsPerWord;
  kernels.pack_signs(from, whole, bits);
  if (rest == 0) return;
  uint32_t word = 0;
  for (size_t i = 0; i < rest; ++i) word |= static_cast<uint32_t>(from[whole * kBitsPerWord + i] < 0) << i;
  bits[whole] = word;
}

// Where the rows of a value begin, of a block or of all.
float* Pointwise::RowsOf(int value, size_t first, float* memory) const {
  const Value& it = values[Index(value)];
  return it.in_scratch ? memory + it.offset : data[Index(value)] + first * it.width;
}

// One row of a block; constants repeat theirs.
const float* Pointwise::RowOf(int value, size_t first, size_t row, float* memory) const {
  const Value& it = values[Index(value)];
  if (it.in_scratch) return memory + it.offset + row * it.width;
  const size_t index = first + row;
  return data[Index(value)] + (index < it.rows ? index : index % it.rows) * it.width;
}

void Pointwise::Run(const NodeView& node, const Step& step, size_t first, size_t count, float* memory) const {
  const KernelSet& kernels = *node.session.kernels;
  const size_t channels = step.channels, width = values[Index(step.output)].width;
  float spread[kSpread];
  float* output = RowsOf(step.output, first, memory);
  for (size_t row = 0; row < count; ++row, output += width) {
    const float* x = RowOf(step.first, first, row, memory);
    const float* y = step.second == kNone ? nullptr : RowOf(step.second, first, row, memory);
    size_t period = step.second == kNone ? channels : values[Index(step.second)].width;
    if (y && period == 1 && step.kind <= kMultiply && channels > 1) {
      for (float& value : spread) value = *y;
      y = spread;
      period = kSpread;
    }
    const float* slope = step.slope == kNone ? nullptr : data[Index(step.slope)];
    const float* bias = step.third == kNone ? nullptr : data[Index(step.third)];
    switch (step.kind) {
      case kAdd:
        ForRepeats(channels, period, [&](size_t i, size_t size) {
          kernels.add(x + i, y, slope ? slope + i : nullptr, output + i, size);
        });
        break;
      case kMultiply:
        ForRepeats(channels, period, [&](size_t i, size_t size) {
          kernels.scale(x + i, y, nullptr, output + i, size);
        });
        break;
      case kSlope:
        SlopeRow(x, slope, output, channels);
        break;
      case kScale:
        kernels.scale(x, y, bias, output, channels);
        step.clamp.Apply(output, channels);
        break;
      case kTile:
        ForRepeats(width, channels, [&](size_t i, size_t size) { std::memcpy(output + i, x, size * sizeof(float)); });
        break;
      case kMean: {
        const float* filter = data[Index(step.second)];
        if (step.dot) {
          step.dot(x, filters.data() + step.filter, output, width);
        } else {
          for (size_t unit = 0; unit < width; ++unit) {
            const Span& span = spans[step.spans + unit];
            output[unit] = DotInFours(x + span.first, filter + span.weights, span.count);
          }
        }
        if (bias) kernels.add(output, bias, nullptr, output, width);
        step.clamp.Apply(output, width);
        break;
      }
      case kSigns: {
        auto* bits = static_cast<uint32_t*>(static_cast<void*>(output));
        if (y) {
          kernels.pack_shifted(x, y, width, bits);
        } else {
          PackRow(kernels, x, channels, bits);
        }
        break;
      }
    }
  }
}

// Hosts may move tensors between runs.
void Pointwise::ResolveTensors(const NodeView& node) {
  for (size_t i = 0; i < value_count; ++i) {
    if (!values[i].in_scratch) data[i] = static_cast<float*>(node.TensorAt(values[i].tensor)->data);
  }
}

bool Pointwise::Invoke(const NodeView& node) {
  ResolveTensors(node);
  // Steps with the same number of rows depend only on each other, and run together.
  for (size_t begin = 0; begin < step_count; ++begin) {
    const size_t rows = values[Index(steps[begin].output)].rows;
    bool done = false;
    for (size_t i = 0; i < begin; ++i) done |= values[Index(steps[i].output)].rows == rows;
    if (done) continue;
    node.session.pool.ParallelFor((rows + block_rows - 1) / block_rows, [&](size_t block, int thread) {
      const size_t first = block * block_rows;
      const size_t count = rows - first < block_rows ? rows - first : block_rows;
      float* memory = scratch.data() + static_cast<size_t>(thread) * scratch_size;
      for (size_t i = begin; i < step_count; ++i) {
        if (!steps[i].skipped && values[Index(steps[i].output)].rows == rows) Run(node, steps[i], first, count, memory);
      }
    });
  }
  return true;
}

}  // namespace

const OpType kPointwise = MakeBuiltinOpType<Pointwise>("Pointwise", kNone);

}  // namespace binaryvit
