// MakeKernelSet: all kernels in terms of a processor's vectors. Everything here is instantiated with types local to one source
// file, so that no function compiled for one instruction set is linked into another.
#ifndef BINARYVIT_KERNEL_LOOP_H_
#define BINARYVIT_KERNEL_LOOP_H_

#include "kernel_elementwise.h"
#include "kernel_expand.h"
#include "kernel_probability.h"
#include "kernel_product.h"

namespace binaryvit {

template <typename Isa>
constexpr KernelSet MakeKernelSet(const char* name) {
  using Tile = typename Isa::Tile;
  using Simd = typename Isa::Simd;
  return {name,
          Tile::kUnits,
          Tile::kWordGroup,
          Tile::kHiddenUnits,
          Tile::kPushesSigns,
          Tile::kRows,
          MultiplyAll<Isa>,
          CountAll<Isa>,
          CountBytesAll<Isa>,
          PackSigns<Isa>,
          ProjectAll<Isa>,
          AttendAll<Isa>,
          ExpandAll<Isa>,
          DeinterleaveAll<Isa>,
          ScaleAndPack<Isa>,
          PackBelow<Isa>,
          PackShifted<Isa>,
          PackAtMost<Isa>,
          Isa::PackBytesBelow,
          PackProbable<Isa>,
          CrossAll<Simd>,
          PoolAll<Simd>,
          AddAll<Simd>,
          ScaleAll<Simd>,
          DotFoursAll<Simd>,
          DotEightsAll<Simd>};
}

}  // namespace binaryvit

#endif  // BINARYVIT_KERNEL_LOOP_H_
