// What other nodes need of com.microsoft::MatMulNBits.

#ifndef EDGETIE_MATMUL_NBITS_H
#define EDGETIE_MATMUL_NBITS_H

#include "operator.h"

// Inputs of MatMulNBits.
enum { ACTIVATIONS, VALUES, SCALES, ZERO_POINTS, GROUP_INDICES, BIAS };

extern const Operator matmul_nbits;

// The matrix of a MatMulNBits node, without its data.
QuantizedMatrix describe_matrix(const Node *);

// Compute the first output: input times the matrix, plus bias (NULL: none). If `rotation` is not
// 0, each `rotation` columns of the input are multiplied by a Hadamard matrix before.
OrtStatus *multiply_input(const Kernels *, OrtAllocator *, const QuantizedMatrix *,
                          const float *bias, const Tensor *input, size_t rotation,
                          float rotation_scale, OrtKernelContext *);

#endif
