// What other nodes need of com.microsoft::MatMulNBits.

#ifndef EDGETIE_MATMUL_NBITS_H
#define EDGETIE_MATMUL_NBITS_H

#include "operator.h"

// Inputs of MatMulNBits.
enum { ACTIVATIONS, VALUES, SCALES, ZERO_POINTS, GROUP_INDICES, BIAS };

extern const Operator matmul_nbits;

// The matrix of a MatMulNBits node, without its data.
QuantizedMatrix describe_matrix(const Node *);

#endif
