// Vectors of AVX2 with FMA, and AVX-VNNI where the set defines HAS_DOT.

#include <immintrin.h>

enum { LANES = 8 };
typedef __m256 Floats;
typedef __m256i Ints;
typedef __m256i Bytes;

INLINE __m256i first_lanes(size_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE Floats load(const float *p) { return _mm256_loadu_ps(p); }
INLINE Floats load_part(const float *p, size_t n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
INLINE void store(float *p, Floats v) { _mm256_storeu_ps(p, v); }
INLINE void store_part(float *p, Floats v, size_t n) {
  _mm256_maskstore_ps(p, first_lanes(n), v);
}
INLINE Floats set(float x) { return _mm256_set1_ps(x); }
INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
INLINE Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
INLINE Floats mul_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
INLINE Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
INLINE Floats divide(Floats a, Floats b) { return _mm256_div_ps(a, b); }
INLINE Floats absolute(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
// Each lane gets that of the lane whose number differs in the bit `distance`.
INLINE Floats exchange(Floats v, const int distance) {
  if (distance == 4) return _mm256_permute2f128_ps(v, v, 1);
  return distance == 1 ? _mm256_permute_ps(v, 0xb1) : _mm256_permute_ps(v, 0x4e);
}
INLINE float sum(Floats v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
INLINE float maximum(Floats v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

// Store the sums of a, b, c and d.
INLINE void store_sums(float *p, Floats a, Floats b, Floats c, Floats d) {
  a = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)));
}

INLINE Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
INLINE Ints to_ints(Floats v) { return _mm256_cvtps_epi32(v); }
INLINE Ints zero_ints(void) { return _mm256_setzero_si256(); }
INLINE Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
INLINE Ints shift_left_8(Ints v) { return _mm256_slli_epi32(v, 8); }
INLINE void store_ints(int32_t *p, Ints v) { _mm256_storeu_si256((__m256i *)p, v); }
INLINE Floats bytes_to_floats(const uint8_t *p, size_t n) {
  uint64_t bytes = 0;
  if (n == 8)
    __builtin_memcpy(&bytes, p, 8);
  else
    for (size_t i = 0; i < n; i++) bytes |= (uint64_t)p[i] << 8 * i;
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes)));
}
INLINE Floats nibbles_to_floats(const uint8_t *p, size_t n) {
  uint32_t packed = 0;
  if (n == 8)
    __builtin_memcpy(&packed, p, 4);
  else
    for (size_t i = 0; i < (n + 1) / 2; i++) packed |= (uint32_t)p[i] << 8 * i;
  const Ints shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  return _mm256_cvtepi32_ps(_mm256_and_si256(
      _mm256_srlv_epi32(_mm256_set1_epi32((int)packed), shifts), _mm256_set1_epi32(15)));
}

INLINE Floats signed_to_floats(const int8_t *p, size_t n) {
  uint64_t bytes = 0;
  __builtin_memcpy(&bytes, p, n);
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((long long)bytes)));
}
// 2^n for -127 <= n <= 127, where -127 gives 0.
INLINE Floats power_of_two(Ints n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

INLINE Bytes load_bytes(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE Bytes load_bytes_part(const uint8_t *p, size_t n) {
  uint8_t bytes[32] = {0};
  __builtin_memcpy(bytes, p, n);
  return load_bytes(bytes);
}
INLINE Bytes low_nibbles(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
INLINE Bytes high_nibbles(Bytes v) {
  return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
}

// The 16 values of 4 bits in 8 bytes.
INLINE void unpack_8(const uint8_t *p, uint8_t *values) {
  const __m128i pairs = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)p));
  const __m128i both = _mm_or_si128(pairs, _mm_slli_epi16(pairs, 4));
  _mm_storeu_si128((__m128i *)values, _mm_and_si128(both, _mm_set1_epi8(15)));
}

// The scales of the blocks that start at p, each for 2^shift lanes.
INLINE Floats spread(const float *p, size_t n, int shift) {
  const Ints lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_permutevar8x32_ps(load_part(p, n),
                                  _mm256_srl_epi32(lane, _mm_cvtsi32_si128(shift)));
}

enum { WEIGHT_OFFSET = 0 };
INLINE Bytes weight_bytes(Bytes v) { return v; }
#if HAS_DOT
typedef Ints Sums;
INLINE Sums zero_sums(void) { return zero_ints(); }
INLINE Sums shift_sums(Sums v) { return shift_left_8(v); }
INLINE Ints lane_sums(Sums v) { return v; }
INLINE Sums dot(Sums sums, Bytes weights, Bytes activations) {
  return _mm256_dpbusd_avx_epi32(sums, weights, activations);
}

// A tile multiplies four columns of a row by LANES tokens, or eight columns by half as many.
enum { TILE_COLUMNS = 4, TILE_GROUP = 4, TILE_BYTES = 4, FOLD = 2 };
typedef Bytes TileWeights, TileActivations;
INLINE TileWeights load_tile_weights(const uint8_t *p, const int fold) {
  int32_t four;
  long long eight;
  if (fold == 2) {
    __builtin_memcpy(&eight, p, 8);
    return _mm256_set1_epi64x(eight);
  }
  __builtin_memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}
INLINE TileActivations load_tile_activations(const uint8_t *p, size_t lanes) {
  (void)lanes;
  return load_bytes(p);
}
INLINE Ints dot_tile(Ints sums, TileWeights weights, TileActivations activations, int row) {
  (void)row;
  return dot(sums, weights, activations);
}
#else
INLINE Ints dot_even_odd(Bytes weights, Bytes even, Bytes odd) {
  const Ints mask = _mm256_set1_epi16(255);
  return _mm256_add_epi32(_mm256_madd_epi16(_mm256_and_si256(weights, mask), even),
                          _mm256_madd_epi16(_mm256_srli_epi16(weights, 8), odd));
}
#endif

// How many tokens are multiplied faster without tiles.
#if HAS_DOT
enum { FEW_TOKENS_8_BITS = 5, FEW_TOKENS_4_BITS = 8 };
#else
enum { FEW_TOKENS_8_BITS = 64, FEW_TOKENS_4_BITS = INT_MAX };
#endif

enum { TILE_ROWS = 6 };
#define EACH_TILE_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5)
