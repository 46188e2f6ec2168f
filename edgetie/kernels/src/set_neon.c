// The kernels compiled for neon.

#if defined(__aarch64__)
#define SET_NAME "neon"
#define SET_KERNELS kernels_neon
#define SIMD_HEADER "simd_neon.h"
#include "set.inc"
#endif
