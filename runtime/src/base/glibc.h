// Included before every file: links exp with its version of glibc 2.17. The version of 2.29 computes the same, but a
// library that needs it loads on fewer systems.
#ifndef BINARYVIT_BASE_GLIBC_H_
#define BINARYVIT_BASE_GLIBC_H_

#include <cmath>

#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver exp, exp@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver exp, exp@GLIBC_2.17");
#endif

#endif  // BINARYVIT_BASE_GLIBC_H_
