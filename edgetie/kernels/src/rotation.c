// Rotations of blocks of channels by a Hadamard matrix, as the quantizer writes them: Reshape to
// blocks, MatMul, Reshape back.

#include <stdlib.h>
#include <string.h>

#include "fusions.h"

typedef struct {
  OrtNodeComputeInfo runtime;
  const Kernels *kernels;
  size_t size;
  float scale;
} BlockRotation;

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

bool find_rotation(const Node *matmul, Rotation *rotation) {
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
  rotation->input = reshape.input_infos[0];
  if (!input->has_shape || input->rank != rank || input->sizes[rank - 1] != channels) return false;
  if (!succeeds(ORT(Node_GetOutputs)(matmul->node, &rotated, 1))) return false;
  const OrtNode *join = only_consumer(rotated);
  if (!join || !reshapes_last(join, rank, &channels, 1, &reshape)) return false;
  rotation->nodes[0] = split, rotation->nodes[1] = matmul->node, rotation->nodes[2] = join;
  return true;
}

static size_t find(const Node *matmul, const OrtNode *nodes[MOST_FUSED]) {
  Rotation rotation;
  if (!find_rotation(matmul, &rotation)) return 0;
  memcpy(nodes, rotation.nodes, sizeof rotation.nodes);
  return 3;
}

static OrtStatus *compute(OrtNodeComputeInfo *self, void *state, OrtKernelContext *context) {
  const BlockRotation *rotation = state;
  Tensor input;
  float *output;
  (void)self;
  RETURN_IF_ERROR(get_input(context, 0, &input));
  RETURN_IF_ERROR(get_output(context, 0, input.sizes, input.rank, (void **)&output));
  rotation->kernels->hadamard(input.data, output,
                              count_elements(input.sizes, input.rank) / rotation->size,
                              rotation->size, rotation->scale);
  return NULL;
}

static OrtStatus *compile(const Node *matmul, const Node *fused, OrtNodeComputeInfo **out) {
  (void)fused;
  BlockRotation *rotation = calloc(1, sizeof *rotation);
  if (!rotation) return fail("edgetie: out of memory");
  *out = &rotation->runtime;
  rotation->runtime = (OrtNodeComputeInfo){API_VERSION, return_self, compute, keep_self};
  rotation->kernels = select_kernels();
  rotation->size = hadamard_size(matmul, &rotation->scale);
  return rotation->size ? NULL : fail("rotation: its matrix changed");
}

const Fusion rotation = {"", "MatMul", find, compile};
