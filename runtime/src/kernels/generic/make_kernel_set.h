// MakeKernelSet: all kernels in terms of a processor's vectors. Everything here is instantiated with types local to one source
// file, so that no function compiled for one instruction set is linked into another.
#ifndef BINARYVIT_KERNELS_GENERIC_MAKE_KERNEL_SET_H_
#define BINARYVIT_KERNELS_GENERIC_MAKE_KERNEL_SET_H_

#include "kernels/generic/elementwise.h"
#include "kernels/generic/expand.h"
#include "kernels/generic/probability.h"
#include "kernels/generic/product.h"

namespace binaryvit {

template <typename Isa>
constexpr decltype(KernelSet::embed) EmbedOf() {
  if constexpr (Isa::Simd::kHasMultiplyAdd) {
    return EmbedAll<Isa>;
  } else {
    return nullptr;
  }
}

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
          DeinterleaveAll<Simd>,
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
          MultiplyFloatsAll<Simd>,
          EmbedOf<Isa>(),
          DotFoursAll<Simd>,
          DotEightsAll<Simd>};
}

}  // namespace binaryvit

#endif  // BINARYVIT_KERNELS_GENERIC_MAKE_KERNEL_SET_H_
