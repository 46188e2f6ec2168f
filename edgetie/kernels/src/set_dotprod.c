// The kernels compiled for dotprod.

#if defined(__aarch64__)
#define TARGET "arch=armv8.2-a+dotprod"
#define SET_NAME "dotprod"
#define SET_KERNELS kernels_dotprod
#define HAS_DOT 1
#define SIMD_HEADER "simd_neon.h"
#include "set.inc"
#endif
