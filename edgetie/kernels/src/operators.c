// The list of what the provider takes.

#include "operator.h"

extern const Operator matmul_nbits, gather_block_quantized, rms_normalization, simplified_norm,
    skip_simplified_norm, group_query_attention, gated_activation, rotation,
    low_rank;

const Operator *const operators[] = {
    &matmul_nbits,    &gather_block_quantized, &rms_normalization,
    &simplified_norm, &skip_simplified_norm,   &group_query_attention,
    &gated_activation, &rotation,              &low_rank,
    NULL,
};
