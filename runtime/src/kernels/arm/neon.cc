// ARM64 without extensions: the bits of two bytes at a time are added to sums of 16 bits.
#include "kernels/arm/tile.h"

namespace binaryvit {
namespace {

struct SumOfBytes {
  using Part = uint16x8_t;
  static constexpr size_t kMaxWords = 4094;  // two bytes' bits are at most 16

  static Part First(uint8x16_t counts) { return vpaddlq_u8(counts); }
  static Part Add(Part part, uint8x16_t counts) { return vpadalq_u8(part, counts); }
  static int32x4_t Total(Part part) { return vreinterpretq_s32_u32(vpaddlq_u16(part)); }
};

}  // namespace

const KernelSet kNeonKernels = MakeKernelSet<ArmIsa<SumOfBytes>>("neon");

}  // namespace binaryvit
