// The kernels' functions, one table per instruction set, and the data that they share.
//
// All tensors are row-major and dense. Nothing here depends on ONNX Runtime.

#ifndef EDGETIE_KERNELS_H
#define EDGETIE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Threads to run tasks on: run(context, task, state, count) calls task(state, i) for each i < count.
typedef struct {
  void *context;
  void (*run)(void *context, void (*task)(void *state, size_t index), void *state, size_t count);
} Parallel;

// A quantized matrix (rows, columns) as MatMulNBits stores it. Element (n, k) is
// (value - zero_point) * scale, with one scale and zero point per block of a row.
typedef struct {
  const uint8_t *values;       // (rows, blocks, block_size * bits / 8), 4-bit: even columns low
  const float *scales;         // (rows, blocks)
  const uint8_t *zero_points;  // (rows, blocks * bits / 8 rounded up), NULL: 2^(bits - 1)
  size_t rows, columns, block_size, blocks;
  int bits;  // 8 or 4
} QuantizedMatrix;

// How many tokens a product takes one by one, reading the weights once for all of them.
enum { FEW_TOKENS = 8 };

typedef struct Kernels {
  const char *name;

  // output (tokens, rows) = input (tokens, columns) times the transposed matrix, plus bias (rows)
  // if it is not NULL. Activations are rounded to 16 bits per step of a vector, or kept in float.
  // `scratch` has scratch_bytes(matrix, tokens) bytes, 64-byte aligned.
  void (*multiply)(const QuantizedMatrix *, const float *input, const float *bias, float *output,
                   size_t tokens, void *scratch, const Parallel *);
  size_t (*scratch_bytes)(const QuantizedMatrix *, size_t tokens);

  // output (columns): row `row` of the matrix, dequantized. Here the last block of a row is not
  // filled up: values has (rows, columns * bits / 8) bytes.
  void (*dequantize_row)(const QuantizedMatrix *, size_t row, float *output);

  // For each of `tokens` rows of `size` values: sum = input + skip + bias (skip and bias may be
  // NULL, sum too), output = sum / sqrt(mean(sum^2) + epsilon) * gain. skip repeats every
  // `skip_tokens` rows.
  void (*rms_norm)(const float *input, const float *skip, size_t skip_tokens, const float *bias,
                   const float *gain, float epsilon, float *output, float *sum, size_t tokens,
                   size_t size);

  // Multiply each of `count` vectors of `size` values (a power of two) by the Hadamard matrix of
  // Sylvester's construction, times `scale`.
  void (*hadamard)(const float *input, float *output, size_t count, size_t size, float scale);
} Kernels;

// The kernels for this processor: the best set it has, or the one that the environment variable
// EDGETIE_INSTRUCTION_SET names, if the processor has it.
const Kernels *select_kernels(void);

#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels kernels_sse2, kernels_avx2, kernels_avxvnni, kernels_avx512;
#elif defined(__aarch64__)
extern const Kernels kernels_neon, kernels_dotprod, kernels_i8mm;
#endif

#endif
