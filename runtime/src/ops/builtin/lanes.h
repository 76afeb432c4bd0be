// Lanes: four values side by side, for loops that have no kernel in each set. GCC and Clang have them on all processors.
// Written out, because compilers don't turn a choice between two numbers into vectors: to compute the one that isn't chosen
// might raise a flag.
#ifndef BINARYVIT_OPS_BUILTIN_LANES_H_
#define BINARYVIT_OPS_BUILTIN_LANES_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace binaryvit {

constexpr size_t kLanes = 4;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t LaneMask __attribute__((vector_size(kLanes * sizeof(float))));

static inline Lanes LoadLanes(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

static inline void StoreLanes(float* to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

static inline float Sum(Lanes lanes) { return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]); }

static inline Lanes Choose(LaneMask mask, Lanes a, Lanes b) {
  return reinterpret_cast<Lanes>((mask & reinterpret_cast<LaneMask>(a)) | (~mask & reinterpret_cast<LaneMask>(b)));
}

static inline float Choose(bool mask, float a, float b) { return mask ? a : b; }

}  // namespace binaryvit

#endif  // BINARYVIT_OPS_BUILTIN_LANES_H_
