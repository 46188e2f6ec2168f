// The kernels compiled for avx2.

#if defined(__x86_64__) || defined(_M_X64)
#define TARGET "avx2,fma"
#define SET_NAME "avx2"
#define SET_KERNELS kernels_avx2
#define SIMD_HEADER "simd_avx2.h"
#include "set.inc"
#endif
