// The lists of what the provider takes: operators, and nodes that run as one.

#include "operator.h"

extern const Operator matmul_nbits, gather_block_quantized, rms_normalization, simplified_norm,
    skip_simplified_norm, group_query_attention;

const Operator *const operators[] = {
    &matmul_nbits,    &gather_block_quantized, &rms_normalization,
    &simplified_norm, &skip_simplified_norm,   &group_query_attention,
    NULL,
};

extern const Fusion fused_product, gated_activation, rotation;

// The largest ones first: a node runs with the first that finds it.
const Fusion *const fusions[] = {&fused_product, &gated_activation, &rotation, NULL};
