// ARMv8.2 with dot products: UDOT adds the four bytes of a lane in one step, and nothing overflows.
#include "kernels/arm/tile.h"

namespace binaryvit {
namespace {

struct DotProduct {
  using Part = uint32x4_t;
  static constexpr size_t kMaxWords = size_t{1} << 26;  // a row has fewer

  static Part First(uint8x16_t counts) { return Add(vdupq_n_u32(0), counts); }
  static Part Add(Part part, uint8x16_t counts) { return vdotq_u32(part, counts, vdupq_n_u8(1)); }
  static int32x4_t Total(Part part) { return vreinterpretq_s32_u32(part); }
};

}  // namespace

const KernelSet kDotprodKernels = MakeKernelSet<ArmIsa<DotProduct>>("dotprod");

}  // namespace binaryvit
