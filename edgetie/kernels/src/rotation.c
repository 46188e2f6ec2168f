// Rotations of blocks of channels by a Hadamard matrix, as the quantizer writes them: Reshape to
// blocks, MatMul, Reshape back.

#include "operator.h"

typedef struct {
  size_t size;
  float scale;
} Rotation;

// The size of a Hadamard matrix of Sylvester's construction times `scale`; 0 if it is none.
static size_t hadamard_size(const Node *node, float *scale) {
  const Value *value = &node->inputs[1];
  Tensor matrix;
  if (node->input_count != 2 || !value->has_shape || value->rank != 2) return 0;
  if (value->type != ELEMENT_FLOAT || value->sizes[0] != value->sizes[1]) return 0;
  const size_t size = (size_t)value->sizes[0];
  if (size < 2 || size > 4096 || (size & (size - 1))) return 0;
  if (!succeeds(node_constant(node, 1, &matrix)) || !matrix.data) return 0;
  const float *elements = matrix.data;
  *scale = elements[0];
  for (size_t i = 0; i < size; i++)
    for (size_t j = 0; j < size; j++) {
      const float sign = __builtin_popcountll(i & j) % 2 ? -1.0f : 1.0f;
      if (elements[i * size + j] != sign * *scale) return 0;
    }
  return size;
}

// Whether a node is a Reshape that keeps all axes but the last `count` ones, which become `sizes`.
static bool reshapes_last(const OrtNode *source, size_t rank, const int64_t *sizes, size_t count,
                          Node *node) {
  Tensor shape;
  bool fits;
  if (!is_operator(source, "", "Reshape")) return false;
  if (!succeeds(describe_node(source, node, &fits)) || !fits || node->input_count != 2)
    return false;
  if (node_int(node, "allowzero", 0)) return false;
  if (!succeeds(node_constant(node, 1, &shape)) || !shape.data || shape.rank != 1) return false;
  if ((size_t)shape.sizes[0] != rank - 1 + count) return false;
  const int64_t *elements = shape.data;
  for (size_t i = 0; i + 1 < rank; i++)
    if (elements[i]) return false;
  for (size_t i = 0; i < count; i++)
    if (elements[rank - 1 + i] != sizes[i]) return false;
  return true;
}

static bool match(const Node *matmul, Match *match) {
  Rotation *rotation = (Rotation *)match->state;
  const OrtValueInfo *rotated;
  Node reshape;
  rotation->size = hadamard_size(matmul, &rotation->scale);
  if (!rotation->size || !matmul->inputs[0].has_shape || matmul->inputs[0].rank < 3) return false;
  const size_t rank = matmul->inputs[0].rank - 1;
  const int64_t blocks[2] = {matmul->inputs[0].sizes[rank - 1], (int64_t)rotation->size};
  const int64_t channels = blocks[0] * blocks[1];
  if (blocks[0] < 1) return false;
  const OrtNode *split = producer(matmul->input_infos[0]);
  if (!split || only_consumer(matmul->input_infos[0]) != matmul->node) return false;
  if (!reshapes_last(split, rank, blocks, 2, &reshape)) return false;
  const Value *input = &reshape.inputs[0];
  match->inputs[0] = reshape.input_infos[0];
  match->inputs[1] = NULL;  // the matrix
  if (!input->has_shape || input->rank != rank || input->sizes[rank - 1] != channels) return false;
  if (!succeeds(ORT(Node_GetOutputs)(matmul->node, &rotated, 1))) return false;
  const OrtNode *join = only_consumer(rotated);
  if (!join || !reshapes_last(join, rank, &channels, 1, &reshape)) return false;
  match->nodes[1] = split, match->nodes[2] = join;
  match->node_count = 3;
  return succeeds(ORT(Node_GetOutputs)(join, match->outputs, 1));
}

static OrtStatus *plan(const void *state, Run *run) {
  const size_t size = ((const Rotation *)state)->size;
  const Tensor *input = run->inputs[0];
  if (input->rank < 1 || (size_t)input->sizes[input->rank - 1] % size)
    return fail("rotation: the last axis is not a multiple of %zu", size);
  set_sizes(run->outputs[0], input->sizes, input->rank);
  return NULL;
}

typedef struct {
  const Rotation *rotation;
  const Run *run;
} Rows;

static void compute_rows(const void *state, size_t first, size_t count) {
  const Rows *rows = state;
  const size_t size = rows->rotation->size;
  const float *input = rows->run->inputs[0]->data;
  float *output = rows->run->outputs[0]->data;
  rows->run->kernels->hadamard(input + first * size, output + first * size, count, size,
                               rows->rotation->scale);
}

static void compute(const void *state, const Run *run) {
  const Rows rows = {state, run};
  const Tensor *input = run->inputs[0];
  for_each_row(run->parallel, compute_rows, &rows,
               count_elements(input->sizes, input->rank) / rows.rotation->size,
               rows.rotation->size);
}

const Operator rotation = {"", "MatMul", 1, 13, match, plan, compute};
