// Which nodes of a graph run together.

#ifndef EDGETIE_PARTITION_H
#define EDGETIE_PARTITION_H

#include "operator.h"

// Tell ONNX Runtime the groups of nodes of which each becomes a program.
OrtStatus *add_programs(const OrtGraph *, OrtEpGraphSupportInfo *);

#endif
