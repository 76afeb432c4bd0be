// BinaryVitPooling: the sum of average poolings over crosses, a row of the map at a time.
#include "ops/fused/projection.h"
#include "ops/op.h"

namespace binaryvit {
namespace {

constexpr int kMaxReach = 64;

struct Pooling {
  bool Prepare(const NodeView& node, const Options& options);
  bool Invoke(const NodeView& node);

 private:
  bool ComputeConstants(const NodeView& node);

  int vertical = 0;
  int horizontal = 0;
  int has_residual = 0;
  size_t batch = 0, height = 0, width = 0, channels = 0;
  Buffer<float> weights;       // center, vertical distances, horizontal distances
  Buffer<float> row_edges;     // of each row and channel
  Buffer<float> column_edges;  // of each column and channel
  Buffer<float> zeros;         // a row outside of the map
};

bool Pooling::ComputeConstants(const NodeView& node) {
  const auto* table = static_cast<const float*>(node.Input(1)->data);
  const auto at = [&](int row, size_t channel) { return table[static_cast<size_t>(row) * channels + channel]; };
  const int distances = vertical + horizontal;
  if (!weights.Resize((1 + static_cast<size_t>(distances)) * channels) || !row_edges.Resize(height * channels) ||
      !column_edges.Resize(width * channels) || !zeros.Resize(width * channels)) {
    return false;
  }
  for (size_t channel = 0; channel < channels; ++channel) {
    for (int d = 0; d <= distances; ++d) {
      weights[static_cast<size_t>(d) * channels + channel] = at(3 + d, channel) * at(0, channel);
    }
    // How many taps at a distance lie inside decides how much of the shift a position gets.
    const auto edge = [&](double sum, int first, int reach, size_t position, size_t side) {
      for (int d = 1; d <= reach; ++d) {
        const auto distance = static_cast<size_t>(d);
        const int inside = (position >= distance) + (position + distance < side);
        sum += inside * static_cast<double>(at(first + d - 1, channel));
      }
      return sum * at(1, channel);
    };
    for (size_t y = 0; y < height; ++y) {
      row_edges[y * channels + channel] =
          static_cast<float>(edge(at(3, channel), 4, vertical, y, height) + at(2, channel));
    }
    for (size_t x = 0; x < width; ++x) {
      column_edges[x * channels + channel] = static_cast<float>(edge(0, 4 + vertical, horizontal, x, width));
    }
  }
  return true;
}

bool Pooling::Prepare(const NodeView& node, const Options& options) {
  if (!node.CheckCounts(2, 1)) return false;
  const litert::Tensor* x = node.Input(0);
  if (!node.CheckType(x, "input", litert::kFloat32) || !node.CheckRank(x, "input", 4) ||
      !node.ReadOption(options, "vertical", 0, kMaxReach, &vertical) ||
      !node.ReadOption(options, "residual", 0, 1, &has_residual)) {
    return false;
  }
  batch = static_cast<size_t>(x->dims->data[0]);
  height = static_cast<size_t>(x->dims->data[1]);
  width = static_cast<size_t>(x->dims->data[2]);
  channels = static_cast<size_t>(x->dims->data[3]);
  if (!node.CheckConstant(node.Input(1), "parameters", litert::kFloat32, 2)) return false;
  horizontal = node.Input(1)->dims->data[0] - 4 - vertical;
  if (horizontal < 0 || horizontal > kMaxReach) {
    return node.Fail("the parameters must have %d to %d rows, but have %d", 4 + vertical, 4 + vertical + kMaxReach,
                     node.Input(1)->dims->data[0]);
  }
  const auto rows = static_cast<size_t>(node.Input(1)->dims->data[0]);
  if (!node.CheckShape(node.Input(1), "parameters", {rows, channels})) return false;
  // The output first: what no host can have needn't be computed.
  return node.ResizeLike(0, x) && (ComputeConstants(node) || node.FailForMemory());
}

bool Pooling::Invoke(const NodeView& node) {
  const auto* x = static_cast<const float*>(node.Input(0)->data);
  auto* output = static_cast<float*>(node.Output(0)->data);
  const KernelSet& kernels = *node.session.kernels;
  const size_t stride = width * channels;
  node.session.pool.ParallelFor(batch * height, [&](size_t task, int) {
    const size_t y = task % height;
    const float* center = x + task * stride;
    const float* above[kMaxReach];
    const float* below[kMaxReach];
    for (size_t d = 1; d <= static_cast<size_t>(vertical); ++d) {
      above[d - 1] = y >= d ? center - d * stride : zeros.data();
      below[d - 1] = y + d < height ? center + d * stride : zeros.data();
    }
    const CrossRow row = {width,
                          channels,
                          static_cast<size_t>(vertical),
                          static_cast<size_t>(horizontal),
                          above,
                          below,
                          center,
                          zeros.data(),
                          weights.data(),
                          row_edges.data() + y * channels,
                          column_edges.data(),
                          has_residual != 0};
    kernels.cross(row, output + task * stride);
  });
  return true;
}

}  // namespace

const OpType kPooling = MakeOpType<Pooling>("BinaryVitPooling");

}  // namespace binaryvit
