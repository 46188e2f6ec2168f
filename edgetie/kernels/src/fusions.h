// Groups of nodes that the provider finds in a graph to run them as one.

#ifndef EDGETIE_FUSIONS_H
#define EDGETIE_FUSIONS_H

#include "operator.h"

// Reshape to blocks, MatMul by a Hadamard matrix times `scale`, Reshape back.
typedef struct {
  const OrtNode *nodes[3];
  const OrtValueInfo *input;
  size_t size;
  float scale;
} Rotation;

bool find_rotation(const Node *matmul, Rotation *);

// Split in two halves, an activation of one of them, Mul with the other. The activation is
// x * sigmoid(alpha * (x + cubic * x^3)).
typedef struct {
  const OrtNode *nodes[3];
  const OrtValueInfo *input;
  bool second_is_gate;
  float alpha, cubic;
} Gate;

bool find_gate(const Node *split, Gate *);

// A product over activations in two parts: Concat of a part and of what is left, the product, Split
// and Add.
enum { MOST_PART_NODES = 16 };

typedef struct {
  const OrtNode *nodes[MOST_PART_NODES];
  size_t count;
  const OrtValueInfo *input;  // the activations
  const OrtNode *sum;         // the last node
} TwoParts;

bool find_two_parts(const Node *product, TwoParts *);

bool is_same(const OrtValueInfo *, const OrtValueInfo *);

// Whether only these nodes read a value, which is not an output of the graph.
bool is_read_only_by(const OrtValueInfo *, const OrtNode *const *nodes, size_t count);

// Tensors of a norm that fit each other. `skip` and `bias` may be absent.
typedef struct {
  Tensor input, skip, gain, bias;
  size_t tokens, size, skip_tokens;
} Norm;

// Read them from inputs of a run: numbers of input, skip, gain and bias, NO_INPUT if absent.
OrtStatus *read_norm(const OrtKernelContext *, const size_t inputs[4], Norm *);

// Whether a node is a norm that the provider takes; its inputs in read_norm's order.
bool is_norm(const Node *, size_t inputs[4]);

// The number of a value among a node's inputs; NO_INPUT for NULL. Fails if it is not there.
OrtStatus *find_input(const Node *, const OrtValueInfo *, size_t *index);

#endif
