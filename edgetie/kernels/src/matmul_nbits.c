// com.microsoft::MatMulNBits: activations times a transposed matrix of 8 or 4 bits.

#include <string.h>

#include "matmul_nbits.h"

static bool is_power_of_two(int64_t n) { return n > 0 && !(n & (n - 1)); }

static bool has_elements(const Node *node, size_t index, int type, int64_t count) {
  const Value *value = &node->inputs[index];
  int64_t product = 1;
  if (!value->present || !value->constant || value->type != type || !value->has_shape) return false;
  for (size_t i = 0; i < value->rank; i++) product *= value->sizes[i];
  return product == count;
}

static bool supports(const Node *node) {
  const int64_t rows = node_int(node, "N", 0), columns = node_int(node, "K", 0);
  const int64_t block = node_int(node, "block_size", 0), bits = node_int(node, "bits", 4);
  if (node->inputs[ACTIVATIONS].type != ELEMENT_FLOAT || !node->outputs[0]) return false;
  if (rows < 1 || columns < 1 || block < 16 || !is_power_of_two(block)) return false;
  if (bits != 4 && bits != 8) return false;
  if (node_has(node, "weight_prepacked") && node_int(node, "weight_prepacked", 0)) return false;
  const int64_t blocks = (columns + block - 1) / block;
  if (!has_elements(node, VALUES, ELEMENT_UINT8, rows * blocks * block * bits / 8)) return false;
  if (!has_elements(node, SCALES, ELEMENT_FLOAT, rows * blocks)) return false;
  if (node->inputs[ZERO_POINTS].present &&
      !has_elements(node, ZERO_POINTS, ELEMENT_UINT8, rows * ((blocks * bits + 7) / 8)))
    return false;
  if (node->inputs[GROUP_INDICES].present) return false;
  return !node->inputs[BIAS].present || has_elements(node, BIAS, ELEMENT_FLOAT, rows);
}

// Several axes of the input are tokens. The state is the matrix without its data.
static bool match(const Node *node, Match *match) {
  if (!supports(node)) return false;
  QuantizedMatrix *matrix = (QuantizedMatrix *)match->state;
  *matrix = (QuantizedMatrix){.rows = (size_t)node_int(node, "N", 0),
                              .columns = (size_t)node_int(node, "K", 0),
                              .block_size = (size_t)node_int(node, "block_size", 0),
                              .bits = (int)node_int(node, "bits", 4)};
  matrix->blocks = (matrix->columns + matrix->block_size - 1) / matrix->block_size;
  join_two_parts(node, match);
  join_block_offsets(match);
  return true;
}

static size_t count_tokens(const Run *run) {
  const Tensor *input = run->inputs[ACTIVATIONS];
  return count_elements(input->sizes, input->rank - 1);
}

static OrtStatus *plan(const void *state, Run *run) {
  const QuantizedMatrix *matrix = state;
  const Tensor *input = run->inputs[ACTIVATIONS];
  int64_t sizes[MOST_AXES];
  if (input->rank < 1 || input->sizes[input->rank - 1] != (int64_t)matrix->columns)
    return fail("MatMulNBits: the last axis of input A has not K = %zu elements", matrix->columns);
  memcpy(sizes, input->sizes, sizeof sizes);
  sizes[input->rank - 1] = (int64_t)matrix->rows;
  set_sizes(run->outputs[0], sizes, input->rank);
  run->scratch_bytes = run->kernels->scratch_bytes(matrix, count_tokens(run));
  return NULL;
}

static void compute(const void *state, const Run *run) {
  QuantizedMatrix matrix = *(const QuantizedMatrix *)state;
  const size_t tokens = count_tokens(run);
  matrix.values = run->inputs[VALUES]->data;
  matrix.scales = run->inputs[SCALES]->data;
  matrix.zero_points = run->inputs[ZERO_POINTS]->data;
  matrix.offsets = run->inputs[OFFSETS]->data;
  if (tokens)
    run->kernels->multiply(&matrix, run->inputs[ACTIVATIONS]->data, run->inputs[BIAS]->data,
                           run->outputs[0]->data, tokens, run->scratch, run->parallel);
}

const Operator matmul_nbits = {"com.microsoft", "MatMulNBits", 1, 1, match, plan, compute};
