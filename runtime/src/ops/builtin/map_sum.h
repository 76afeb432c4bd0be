// MapSum: an ADD of a constant map, such as position embeddings, that runs with the operator before it: what that operator has
// just computed is still in the cache. The delegate gives such an operator both nodes.
#ifndef BINARYVIT_OPS_BUILTIN_MAP_SUM_H_
#define BINARYVIT_OPS_BUILTIN_MAP_SUM_H_

#include "ops/op.h"

namespace binaryvit {

class MapSum {
 public:
  // Whether `sum` adds a constant to each map that `node` computes.
  static bool Follows(const NodeView& node, const NodeView& sum);

  // Gives the outputs of one node or two the shape of the maps. Call CheckCounts first.
  bool Prepare(const NodeView& node, const int64_t (&shape)[4]);

  // Reads where the tensors are, which hosts may change between runs. Returns where the operator has to write.
  float* Resolve(const NodeView& node);

  // Adds the constant to `count` values of the operator, from the first one on, all of one map.
  void Add(const KernelSet& kernels, size_t first, size_t count) const;

 private:
  size_t size_ = 0;  // of a map
  const float* constant_ = nullptr;  // null: nothing is added
  const float* computed_ = nullptr;
  float* output_ = nullptr;
};

}  // namespace binaryvit

#endif  // BINARYVIT_OPS_BUILTIN_MAP_SUM_H_
