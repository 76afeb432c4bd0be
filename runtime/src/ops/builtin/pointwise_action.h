// Action: what a builtin node does to each position of a map by itself.
#ifndef BINARYVIT_OPS_BUILTIN_POINTWISE_ACTION_H_
#define BINARYVIT_OPS_BUILTIN_POINTWISE_ACTION_H_

#include "ops/builtin/clamp.h"
#include "ops/op.h"

namespace binaryvit {

enum Kind : int { kAdd, kMultiply, kSlope, kScale, kTile, kMean, kSigns };

// What a node does to rows of channels.
struct Action {
  Kind kind;
  int main;  // the input with the output's rows
  size_t rows;
  size_t channels;
  size_t width;  // of a row of the output
  Clamp clamp;  // of convolutions
};

// Where the filter of a unit isn't zero.
struct Span {
  size_t first;  // channel of the input
  size_t count;
  size_t weights;  // index in the filter
};
Span SpanOf(const float* filter, size_t unit, size_t units, size_t group_channels, size_t groups);

static inline size_t Elements(const litert::Tensor& tensor) { return Product(*tensor.dims, 0, tensor.dims->size); }

// A constant that has all the data of its shape.
bool IsConstant(const litert::Tensor* tensor, litert::Type type);

// A constant with one value for each of the channels.
bool IsTable(const litert::Tensor* tensor, size_t channels);

// Sets the action of a node. False if the node does anything else.
bool Describe(const NodeView& node, Action* action);

}  // namespace binaryvit

#endif  // BINARYVIT_OPS_BUILTIN_POINTWISE_ACTION_H_
