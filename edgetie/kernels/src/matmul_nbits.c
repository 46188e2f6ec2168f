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

QuantizedMatrix describe_matrix(const Node *node) {
  QuantizedMatrix matrix = {.rows = (size_t)node_int(node, "N", 0),
                            .columns = (size_t)node_int(node, "K", 0),
                            .block_size = (size_t)node_int(node, "block_size", 0),
                            .bits = (int)node_int(node, "bits", 4)};
  matrix.blocks = (matrix.columns + matrix.block_size - 1) / matrix.block_size;
  return matrix;
}

typedef struct {
  QuantizedMatrix matrix;
  const float *bias;
} State;

static OrtStatus *create(void *out, const OrtKernelInfo *info) {
  State *state = out;
  Tensor tensors[BIAS + 1];
  for (size_t i = VALUES; i <= BIAS; i++)
    RETURN_IF_ERROR(constant_input(info, i, &tensors[i]));
  QuantizedMatrix *matrix = &state->matrix;
  matrix->rows = (size_t)info_int(info, "N", 0);
  matrix->columns = (size_t)info_int(info, "K", 0);
  matrix->block_size = (size_t)info_int(info, "block_size", 0);
  matrix->bits = (int)info_int(info, "bits", 4);
  matrix->blocks = (matrix->columns + matrix->block_size - 1) / matrix->block_size;
  matrix->values = tensors[VALUES].data;
  matrix->scales = tensors[SCALES].data;
  matrix->zero_points = tensors[ZERO_POINTS].data;
  state->bias = tensors[BIAS].data;
  if (!matrix->values || !matrix->scales) return fail("MatMulNBits: weights are not constant");
  return NULL;
}

static OrtStatus *compute(const Kernel *kernel, const void *saved, OrtKernelContext *context) {
  _Alignas(64) char small[SMALL_SCRATCH];
  const State *state = saved;
  const QuantizedMatrix *matrix = &state->matrix;
  Tensor input;
  int64_t sizes[8];
  float *output;
  void *to_release = NULL;
  RETURN_IF_ERROR(get_input(context, ACTIVATIONS, &input));
  if (input.rank < 1 || input.rank > 8 ||
      input.sizes[input.rank - 1] != (int64_t)matrix->columns)
    return fail("MatMulNBits: the last axis of input A has not K = %zu elements", matrix->columns);
  memcpy(sizes, input.sizes, input.rank * sizeof *sizes);
  sizes[input.rank - 1] = (int64_t)matrix->rows;
  RETURN_IF_ERROR(get_output(context, 0, sizes, input.rank, (void **)&output));
  const size_t tokens = count_elements(input.sizes, input.rank - 1);
  if (!tokens) return NULL;
  const Parallel parallel = session_threads(context);
  const size_t bytes = kernel->kernels->scratch_bytes(matrix, tokens);
  void *scratch =
      bytes <= sizeof small ? small : get_scratch(kernel->allocator, bytes, &to_release);
  if (!scratch) return fail("MatMulNBits: out of memory");
  kernel->kernels->multiply(matrix, input.data, state->bias, output, tokens, scratch, &parallel);
  if (to_release) kernel->allocator->Free(kernel->allocator, to_release);
  return NULL;
}

static const char *const float_types[] = {"T1", NULL};

const Operator matmul_nbits = {
    .domain = "com.microsoft",
    .name = "MatMulNBits",
    .first_version = 1,
    .last_version = 1,
    .float_types = float_types,
    .supports = supports,
    .state_size = sizeof(State),
    .create = create,
    .compute = compute,
};
