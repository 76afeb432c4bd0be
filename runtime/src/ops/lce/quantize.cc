// LceQuantize and LceDequantize: values to the bits of their signs, and back.
#include "ops/op.h"

namespace binaryvit {
namespace {

constexpr size_t kWordsPerTask = 4096;

// A bit is set for values below `zero`; the last word of a row is padded with zeros.
template <typename T, typename Zero>
void PackRow(const T* values, size_t channels, Zero zero, uint32_t* bits) {
  for (size_t first = 0; first < channels; first += kBitsPerWord) {
    const size_t count = channels - first < kBitsPerWord ? channels - first : kBitsPerWord;
    uint32_t word = 0;
    for (size_t i = 0; i < count; ++i) word |= static_cast<uint32_t>(values[first + i] < zero) << i;
    *bits++ = word;
  }
}

template <typename T>
void UnpackRow(const uint32_t* bits, size_t channels, T clear, T set, T* values) {
  for (size_t i = 0; i < channels; ++i) values[i] = (bits[i / kBitsPerWord] >> (i % kBitsPerWord)) & 1 ? set : clear;
}

// The int8 value nearest to zero_point + offset.
int8_t Saturate(double value) {
  if (!(value > -128)) return -128;
  return value < 127 ? static_cast<int8_t>(value) : 127;
}

// Calls body(first row, row after the last) for all rows, on all threads.
template <typename Body>
void ForRows(Session& session, size_t rows, size_t words, const Body& body) {
  const size_t step = words < kWordsPerTask ? kWordsPerTask / words : 1;
  session.pool.ParallelFor((rows + step - 1) / step, [&](size_t task, int) {
    body(task * step, (task + 1) * step < rows ? (task + 1) * step : rows);
  });
}

struct LceQuantize {
  size_t rows = 0;
  size_t channels = 0;

  bool Prepare(const NodeView& node, const Options&) {
    if (!node.CheckCounts(1, 1)) return false;
    const litert::Tensor* input = node.Input(0);
    if (!input || !input->dims || input->dims->size < 1) return node.Fail("the input must have a dimension of channels");
    if (!node.CheckRank(input, "input", input->dims->size)) return false;
    if (input->type != litert::kFloat32 && input->type != litert::kInt8 && input->type != litert::kBool) {
      return node.Fail("the input must be float32, int8 or bool");
    }
    if (!node.CheckType(node.Output(0), "output", litert::kInt32)) return false;
    const int rank = input->dims->size;
    if (rank > 8) return node.Fail("the input must have at most 8 dimensions, but has %d", rank);
    int64_t dims[8];
    for (int i = 0; i < rank; ++i) dims[i] = input->dims->data[i];
    rows = Product(*input->dims, 0, rank - 1);
    channels = static_cast<size_t>(dims[rank - 1]);
    dims[rank - 1] = static_cast<int64_t>(WordsFor(channels));
    return node.ResizeOutput(0, dims, rank);
  }

  bool Invoke(const NodeView& node) {
    const litert::Tensor* input = node.Input(0);
    auto* bits = static_cast<uint32_t*>(node.Output(0)->data);
    const size_t words = WordsFor(channels);
    const auto pack = [&](auto pack_row) {
      ForRows(node.session, rows, words, [&](size_t first, size_t last) {
        for (size_t row = first; row < last; ++row) pack_row(row * channels, bits + row * words);
      });
    };
    if (input->type == litert::kFloat32) {
      const auto* values = static_cast<const float*>(input->data);
      const auto pack_signs = node.session.kernels->pack_signs;
      if (channels % kBitsPerWord == 0) {
        ForRows(node.session, rows, words, [&](size_t first, size_t last) {
          pack_signs(values + first * channels, (last - first) * words, bits + first * words);
        });
      } else {
        pack([&](size_t offset, uint32_t* row) {
          const size_t whole = channels / kBitsPerWord;
          pack_signs(values + offset, whole, row);
          PackRow(values + offset + whole * kBitsPerWord, channels % kBitsPerWord, 0.0f, row + whole);
        });
      }
    } else if (input->type == litert::kInt8) {
      const auto* values = static_cast<const int8_t*>(input->data);
      const int zero = input->quantization.zero_point;
      pack([&](size_t offset, uint32_t* row) { PackRow(values + offset, channels, zero, row); });
    } else {
      const auto* values = static_cast<const uint8_t*>(input->data);
      pack([&](size_t offset, uint32_t* row) { PackRow(values + offset, channels, 1, row); });
    }
    return true;
  }
};

struct LceDequantize {
  size_t rows = 0;
  size_t channels = 0;

  bool Prepare(const NodeView& node, const Options&) {
    if (!node.CheckCounts(1, 1)) return false;
    const litert::Tensor* input = node.Input(0);
    const litert::Tensor* output = node.Output(0);
    if (!node.CheckType(input, "input", litert::kInt32)) return false;
    if (output->type != litert::kFloat32 && output->type != litert::kInt8 && output->type != litert::kBool) {
      return node.Fail("the output must be float32, int8 or bool");
    }
    const int rank = output->dims ? output->dims->size : 0;
    if (rank < 1 || rank > 8) return node.Fail("the output must have 1 to 8 dimensions, but has %d", rank);
    if (!node.CheckRank(output, "output", rank) || !node.CheckRank(input, "input", rank)) return false;
    // Only the output knows how many channels the last word holds; the other dimensions follow the input.
    int64_t dims[8];
    for (int i = 0; i < rank - 1; ++i) dims[i] = input->dims->data[i];
    dims[rank - 1] = output->dims->data[rank - 1];
    rows = Product(*input->dims, 0, rank - 1);
    channels = static_cast<size_t>(dims[rank - 1]);
    const int words = input->dims->data[rank - 1];
    if (WordsFor(channels) != static_cast<size_t>(words)) {
      return node.Fail("%zu channels of the output need %zu words, but the input has %d", channels, WordsFor(channels),
                       words);
    }
    return node.ResizeOutput(0, dims, rank);
  }

  bool Invoke(const NodeView& node) {
    const auto* bits = static_cast<const uint32_t*>(node.Input(0)->data);
    const litert::Tensor* output = node.Output(0);
    const auto unpack = [&](auto* values, auto clear, auto set) {
      const size_t words = WordsFor(channels);
      ForRows(node.session, rows, words, [&](size_t first, size_t last) {
        for (size_t row = first; row < last; ++row) {
          UnpackRow(bits + row * words, channels, clear, set, values + row * channels);
        }
      });
    };
    if (output->type == litert::kFloat32) {
      unpack(static_cast<float*>(output->data), 1.0f, -1.0f);
    } else if (output->type == litert::kInt8) {
      const double zero = output->quantization.zero_point;
      const double one = static_cast<double>(__builtin_roundf(1.0f / output->quantization.scale));
      unpack(static_cast<int8_t*>(output->data), Saturate(zero + one), Saturate(zero - one));
    } else {
      unpack(static_cast<uint8_t*>(output->data), uint8_t{1}, uint8_t{0});
    }
    return true;
  }
};

}  // namespace

const OpType kLceQuantize = MakeOpType<LceQuantize>("LceQuantize");
const OpType kLceDequantize = MakeOpType<LceDequantize>("LceDequantize");

}  // namespace binaryvit
