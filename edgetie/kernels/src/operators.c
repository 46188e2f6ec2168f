// The lists of what the provider takes: operators, and nodes that run as one.

#include "operator.h"

extern const Operator matmul_nbits, gather_block_quantized, rms_normalization, simplified_norm,
    skip_simplified_norm, group_query_attention;

const Operator *const operators[] = {
    &matmul_nbits,    &gather_block_quantized, &rms_normalization,
    &simplified_norm, &skip_simplified_norm,   &group_query_attention,
    NULL,
};

extern const Fusion gated_activation, rotation;

const Fusion *const fusions[] = {&gated_activation, &rotation, NULL};
