// LceBMaxPool2d: the largest of a window of signs is negative only if all are, so pooling is AND. Padding doesn't count.
#include "ops/lce/window.h"
#include "ops/op.h"

namespace binaryvit {
namespace {

struct LceBMaxPool2d {
  int words = 0;
  int batch = 0;
  Window rows = {};
  Window columns = {};

  bool Prepare(const NodeView& node, const Options& options) {
    if (!node.CheckCounts(1, 1)) return false;
    const litert::Tensor* input = node.Input(0);
    if (!node.CheckType(input, "input", litert::kInt32) || !node.CheckRank(input, "input", 4)) return false;
    if (!node.CheckType(node.Output(0), "output", litert::kInt32)) return false;
    int padding;
    if (!node.ReadOption(options, "filter_height", 1, INT32_MAX, &rows.size) ||
        !node.ReadOption(options, "filter_width", 1, INT32_MAX, &columns.size) ||
        !node.ReadOption(options, "stride_height", 1, INT32_MAX, &rows.stride) ||
        !node.ReadOption(options, "stride_width", 1, INT32_MAX, &columns.stride) ||
        !node.ReadOption(options, "padding", kSame, kValid, &padding)) {
      return false;
    }
    batch = input->dims->data[0];
    rows.input = input->dims->data[1];
    columns.input = input->dims->data[2];
    words = input->dims->data[3];
    rows.dilation = columns.dilation = 1;
    if (!rows.Place(static_cast<Padding>(padding)) || !columns.Place(static_cast<Padding>(padding))) {
      return node.Fail("a window of %d x %d is larger than the map of %d x %d", rows.size, columns.size, rows.input,
                       columns.input);
    }
    const int64_t dims[] = {batch, rows.output, columns.output, words};
    return node.ResizeOutput(0, dims, 4);
  }

  bool Invoke(const NodeView& node) {
    const auto* input = static_cast<const uint32_t*>(node.Input(0)->data);
    auto* output = static_cast<uint32_t*>(node.Output(0)->data);
    const size_t output_rows = static_cast<size_t>(batch) * static_cast<size_t>(rows.output);
    node.session.pool.ParallelFor(output_rows, [&](size_t row, int) { PoolRow(input, output, row); });
    return true;
  }

  void PoolRow(const uint32_t* input, uint32_t* output, size_t row) const {
    const size_t depth = static_cast<size_t>(words);
    const int64_t image = static_cast<int64_t>(row) / rows.output * rows.input;
    const int64_t y = static_cast<int64_t>(row) % rows.output;
    uint32_t* target = output + row * static_cast<size_t>(columns.output) * depth;
    for (int64_t x = 0; x < columns.output; ++x, target += depth) {
      for (size_t word = 0; word < depth; ++word) target[word] = ~uint32_t{0};
      for (int64_t in_y = First(rows, y); in_y < Last(rows, y); ++in_y) {
        const uint32_t* source = input + static_cast<size_t>((image + in_y) * columns.input) * depth;
        for (int64_t in_x = First(columns, x); in_x < Last(columns, x); ++in_x) {
          const uint32_t* position = source + static_cast<size_t>(in_x) * depth;
          for (size_t word = 0; word < depth; ++word) target[word] &= position[word];
        }
      }
    }
  }

  static int64_t First(const Window& window, int64_t position) {
    const int64_t first = window.At(position, 0);
    return first > 0 ? first : 0;
  }

  static int64_t Last(const Window& window, int64_t position) {
    const int64_t last = window.At(position, 0) + window.size;
    return last < window.input ? last : window.input;
  }
};

}  // namespace

const OpType kLceBMaxPool2d = MakeOpType<LceBMaxPool2d>("LceBMaxPool2d");

}  // namespace binaryvit
