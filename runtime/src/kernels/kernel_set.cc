#include "kernels/kernel_set.h"

#include <cstdlib>
#include <cstring>

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace binaryvit {
namespace {

struct Candidate {
  const KernelSet* kernels;
  bool (*runs_here)();
};

// The best first.
const Candidate kCandidates[] = {
#if defined(__x86_64__)
    {&kAvx512Kernels,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vpopcntdq");
     }},
    {&kAvx512BwKernels,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
     }},
    {&kAvx2Kernels, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
    {&kSseKernels, [] { return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt"); }},
#elif defined(__aarch64__)
#if defined(__linux__)
    {&kDotprodKernels, [] { return (getauxval(AT_HWCAP) & (1UL << 20)) != 0; }},  // HWCAP_ASIMDDP
#else
    {&kDotprodKernels, [] { return true; }},  // all of Apple's
#endif
    {&kNeonKernels, [] { return true; }},
#endif
    {&kScalarKernels, [] { return true; }},
};

}  // namespace

const KernelSet* SelectKernels() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  const char* name = std::getenv("BINARYVIT_KERNELS");
  for (const Candidate& candidate : kCandidates) {
    const bool wanted = !name || !*name || std::strcmp(name, candidate.kernels->name) == 0;
    if (wanted && candidate.runs_here()) return candidate.kernels;
  }
  return nullptr;
}

const char* KernelNames() {
#if defined(__x86_64__)
  return "scalar, sse, avx2, avx512bw, avx512";
#elif defined(__aarch64__)
  return "scalar, neon, dotprod";
#else
  return "scalar";
#endif
}

void PackRows(const uint32_t* rows, size_t stride, size_t units, size_t words, size_t tile, size_t group,
              uint32_t* packed) {
  for (size_t first = 0; first < units; first += tile) {
    uint32_t* block = packed + PackedIndex(tile, group, words, first, 0);
    for (size_t unit = first; unit < units && unit < first + tile; ++unit, rows += stride) {
      uint32_t* to = block + (unit - first) * group;
      for (size_t word = 0; word < words; word += group, to += tile * group) {
        for (size_t i = 0; i < group && word + i < words; ++i) to[i] = rows[word + i];
      }
    }
  }
}

bool PackWeights(const KernelSet& kernels, const uint32_t* rows, size_t units, size_t words,
                 Buffer<uint32_t>* packed) {
  const size_t tile = kernels.unit_tile, group = kernels.word_group;
  if (!packed->Resize(PackedWords(units, words, tile, group))) return false;
  PackRows(rows, words, units, words, tile, group, packed->data());
  return true;
}

}  // namespace binaryvit
