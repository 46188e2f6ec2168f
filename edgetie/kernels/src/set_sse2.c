// The kernels compiled for sse2.

#if defined(__x86_64__) || defined(_M_X64)
#define SET_NAME "sse2"
#define SET_KERNELS kernels_sse2
#define SIMD_HEADER "simd_sse2.h"
#include "set.inc"
#endif
