// What is known of com.microsoft::MatMulNBits elsewhere.

#ifndef EDGETIE_MATMUL_NBITS_H
#define EDGETIE_MATMUL_NBITS_H

#include "operator.h"

// Inputs of MatMulNBits.
enum { ACTIVATIONS, VALUES, SCALES, ZERO_POINTS, GROUP_INDICES, BIAS };

// If the quantizer multiplies two parts of the activations and adds them, take all these nodes.
void join_two_parts(const Node *product, Match *);

#endif
