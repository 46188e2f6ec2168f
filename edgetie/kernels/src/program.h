// What the provider computes of a graph, as one node: its operators, one after the other.

#ifndef EDGETIE_PROGRAM_H
#define EDGETIE_PROGRAM_H

#include "operator.h"

// Make what computes a graph, which ONNX Runtime runs as the node `fused`.
OrtStatus *create_program(const OrtGraph *, const OrtNode *fused, OrtNodeComputeInfo **);
void release_program(OrtNodeComputeInfo *);

#endif
