// What is known of com.microsoft::MatMulNBits elsewhere.

#ifndef EDGETIE_MATMUL_NBITS_H
#define EDGETIE_MATMUL_NBITS_H

#include "operator.h"

// Inputs of MatMulNBits, and the offsets of blocks.
enum { ACTIVATIONS, VALUES, SCALES, ZERO_POINTS, GROUP_INDICES, BIAS, OFFSETS };

// If the quantizer multiplies two parts of the activations and adds them, take all these nodes.
void join_two_parts(const Node *product, Match *);

// If nodes add what offsets of blocks contribute, take these too.
void join_block_offsets(Match *);

#endif
