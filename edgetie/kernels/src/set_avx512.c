// The kernels compiled for avx512.

#if defined(__x86_64__) || defined(_M_X64)
#define TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma"
#define SET_NAME "avx512"
#define SET_KERNELS kernels_avx512
#define SIMD_HEADER "simd_avx512.h"
#include "set.inc"
#endif
