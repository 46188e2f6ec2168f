// Vectors of SSE2, which every x86-64 processor has.

#include <emmintrin.h>

enum { LANES = 4 };
typedef __m128 Floats;
typedef __m128i Ints;
typedef __m128i Bytes;

INLINE Floats load(const float *p) { return _mm_loadu_ps(p); }
INLINE Floats load_part(const float *p, size_t n) {
  if (n == 4) return load(p);
  float values[4] = {0};
  __builtin_memcpy(values, p, n * sizeof *p);
  return load(values);
}
INLINE void store(float *p, Floats v) { _mm_storeu_ps(p, v); }
INLINE void store_part(float *p, Floats v, size_t n) {
  float values[4];
  store(values, v);
  __builtin_memcpy(p, values, n * sizeof *p);
}
INLINE Floats set(float x) { return _mm_set1_ps(x); }
INLINE Floats add(Floats a, Floats b) { return _mm_add_ps(a, b); }
INLINE Floats sub(Floats a, Floats b) { return _mm_sub_ps(a, b); }
INLINE Floats mul(Floats a, Floats b) { return _mm_mul_ps(a, b); }
INLINE Floats mul_add(Floats a, Floats b, Floats c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
INLINE Floats max(Floats a, Floats b) { return _mm_max_ps(a, b); }
INLINE Floats min(Floats a, Floats b) { return _mm_min_ps(a, b); }
INLINE Floats divide(Floats a, Floats b) { return _mm_div_ps(a, b); }
INLINE Floats absolute(Floats a) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), a); }
// Each lane gets that of the lane whose number differs in the bit `distance`.
INLINE Floats exchange(Floats v, const int distance) {
  return distance == 1 ? _mm_shuffle_ps(v, v, 0xb1) : _mm_shuffle_ps(v, v, 0x4e);
}
INLINE float sum(Floats v) {
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
}
INLINE float maximum(Floats v) {
  v = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
}

// Store the sums of a, b, c and d.
INLINE void store_sums(float *p, Floats a, Floats b, Floats c, Floats d) {
  a = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
  c = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
  store(p, _mm_add_ps(_mm_movelh_ps(a, c), _mm_movehl_ps(c, a)));
}

INLINE Floats to_floats(Ints v) { return _mm_cvtepi32_ps(v); }
INLINE Ints to_ints(Floats v) { return _mm_cvtps_epi32(v); }
INLINE void store_ints(int32_t *p, Ints v) { _mm_storeu_si128((__m128i *)p, v); }
INLINE Floats bytes_to_floats(const uint8_t *p, size_t n) {
  int32_t four = 0;
  if (n == 4)
    __builtin_memcpy(&four, p, 4);
  else
    for (size_t i = 0; i < n; i++) four |= p[i] << 8 * i;
  const Ints words = _mm_unpacklo_epi8(_mm_cvtsi32_si128(four), _mm_setzero_si128());
  return _mm_cvtepi32_ps(_mm_unpacklo_epi16(words, _mm_setzero_si128()));
}
INLINE Floats nibbles_to_floats(const uint8_t *p, size_t n) {
  uint8_t values[4] = {p[0] & 15, p[0] >> 4};
  if (n > 2) values[2] = p[1] & 15, values[3] = p[1] >> 4;
  return bytes_to_floats(values, 4);
}

INLINE Floats signed_to_floats(const int8_t *p, size_t n) {
  int32_t four = 0;
  __builtin_memcpy(&four, p, n);
  const Ints words = _mm_unpacklo_epi8(_mm_cvtsi32_si128(four), _mm_cvtsi32_si128(four));
  return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(words, words), 24));
}
// 2^n for -127 <= n <= 127, where -127 gives 0.
INLINE Floats power_of_two(Ints n) {
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_add_epi32(n, _mm_set1_epi32(127)), 23));
}

INLINE Bytes load_bytes(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }
INLINE Bytes load_bytes_part(const uint8_t *p, size_t n) {
  uint8_t bytes[16] = {0};
  __builtin_memcpy(bytes, p, n);
  return load_bytes(bytes);
}
INLINE Bytes low_nibbles(Bytes v) { return _mm_and_si128(v, _mm_set1_epi8(15)); }
INLINE Bytes high_nibbles(Bytes v) {
  return _mm_and_si128(_mm_srli_epi16(v, 4), _mm_set1_epi8(15));
}

// The scales of the blocks that start at p, each for 2^shift lanes.
INLINE Floats spread(const float *p, size_t n, int shift) {
  float values[4] = {0};
  for (size_t i = 0; i < 4; i++)
    if ((i >> shift) < n) values[i] = p[i >> shift];
  return load(values);
}

enum { WEIGHT_OFFSET = 0 };
INLINE Bytes weight_bytes(Bytes v) { return v; }
INLINE Ints add_ints(Ints a, Ints b) { return _mm_add_epi32(a, b); }
INLINE Ints dot_even_odd(Bytes weights, Bytes even, Bytes odd) {
  const Ints mask = _mm_set1_epi16(255);
  return _mm_add_epi32(_mm_madd_epi16(_mm_and_si128(weights, mask), even),
                       _mm_madd_epi16(_mm_srli_epi16(weights, 8), odd));
}
// How many tokens are multiplied faster without tiles.
enum { FEW_TOKENS_8_BITS = INT_MAX, FEW_TOKENS_4_BITS = INT_MAX };

enum { TILE_ROWS = 6 };
#define EACH_TILE_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5)
