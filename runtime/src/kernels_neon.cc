// ARM64 without extensions: bits are summed byte by byte, and bytes across a lane before one might overflow.
#include "kernels_arm.h"

namespace binaryvit {
namespace {

struct SumOfBytes {
  using Part = uint8x16_t;
  static constexpr size_t kWordsBeforeOverflow = 31;  // of 8 bits a byte

  static Part First(uint8x16_t counts) { return counts; }
  static Part Add(Part part, uint8x16_t counts) { return vaddq_u8(part, counts); }
  static uint32x4_t Total(Part part) { return vpaddlq_u16(vpaddlq_u8(part)); }
};

}  // namespace

const KernelSet kNeonKernels = MakeKernelSet<ArmIsa<SumOfBytes>>("neon");

}  // namespace binaryvit
