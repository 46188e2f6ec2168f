// com.microsoft::GatherBlockQuantized: rows of a quantized table, dequantized.

#include <string.h>

#include "operator.h"

enum { TABLE, INDICES, SCALES, ZERO_POINTS };

// The table's shape is (rows, columns) or (rows, ...) flattened to columns; quantized along the
// last axis, gathered along the first.
static bool supports(const Node *node) {
  const Value *table = &node->inputs[TABLE], *scales = &node->inputs[SCALES];
  const Value *zeros = &node->inputs[ZERO_POINTS];
  const int64_t block = node_int(node, "block_size", 128), bits = node_int(node, "bits", 4);
  if (table->type != ELEMENT_UINT8 || scales->type != ELEMENT_FLOAT) return false;
  if (!table->constant || !scales->constant || (zeros->present && !zeros->constant)) return false;
  if (!table->has_shape || !scales->has_shape || table->rank != scales->rank) return false;
  if (bits != 4 && bits != 8) return false;
  if (block < 16 || (block & (block - 1))) return false;
  const int64_t rank = (int64_t)table->rank;
  const int64_t gathered = node_int(node, "gather_axis", 0);
  const int64_t quantized = node_int(node, "quantize_axis", 1);
  if (rank < 2 || (gathered != 0 && gathered != -rank)) return false;
  if (quantized != rank - 1 && quantized != -1) return false;
  for (size_t i = 0; i + 1 < table->rank; i++)
    if (table->sizes[i] != scales->sizes[i] || table->sizes[i] < 1) return false;
  const int64_t last = table->sizes[rank - 1] * (8 / bits);
  const int64_t blocks = (last + block - 1) / block;
  if (last < 1 || scales->sizes[rank - 1] != blocks) return false;
  if (rank > 2 && last % block) return false;  // blocks of one row must follow each other
  if (zeros->present) {
    if (zeros->type != ELEMENT_UINT8 || !zeros->has_shape || zeros->rank != table->rank)
      return false;
    for (size_t i = 0; i + 1 < table->rank; i++)
      if (zeros->sizes[i] != table->sizes[i]) return false;
    if (zeros->sizes[rank - 1] != (blocks * bits + 7) / 8) return false;
    if (bits == 4 && rank > 2 && blocks % 2) return false;
  }
  return bits == 8 || last % 2 == 0;
}

typedef struct {
  QuantizedMatrix matrix;
  const int64_t *sizes;  // of the table
  size_t rank;
} State;

static OrtStatus *create(void *out, const OrtKernelInfo *info) {
  State *state = out;
  Tensor table, scales, zeros;
  RETURN_IF_ERROR(constant_input(info, TABLE, &table));
  RETURN_IF_ERROR(constant_input(info, SCALES, &scales));
  RETURN_IF_ERROR(constant_input(info, ZERO_POINTS, &zeros));
  if (!table.data || !scales.data) return fail("GatherBlockQuantized: the table is not constant");
  QuantizedMatrix *matrix = &state->matrix;
  matrix->bits = (int)info_int(info, "bits", 4);
  matrix->rows = (size_t)table.sizes[0];
  matrix->columns = count_elements(table.sizes + 1, table.rank - 1) * (8 / (size_t)matrix->bits);
  matrix->block_size = (size_t)info_int(info, "block_size", 128);
  matrix->blocks = count_elements(scales.sizes + 1, scales.rank - 1);
  matrix->values = table.data;
  matrix->scales = scales.data;
  matrix->zero_points = zeros.data;
  state->sizes = table.sizes;
  state->rank = table.rank;
  return NULL;
}

typedef struct {
  const QuantizedMatrix *matrix;
  const Kernels *kernels;
  const int64_t *wide;
  const int32_t *narrow;
  float *output;
} Lookup;

static int64_t index_at(const Lookup *lookup, size_t i) {
  const int64_t index = lookup->wide ? lookup->wide[i] : lookup->narrow[i];
  return index < 0 ? index + (int64_t)lookup->matrix->rows : index;
}

static void look_up(void *state, size_t i) {
  const Lookup *lookup = state;
  lookup->kernels->dequantize_row(lookup->matrix, (size_t)index_at(lookup, i),
                                  lookup->output + i * lookup->matrix->columns);
}

static OrtStatus *compute(const Kernel *kernel, const void *saved, OrtKernelContext *context) {
  const State *state = saved;
  const QuantizedMatrix *matrix = &state->matrix;
  Tensor indices;
  int64_t sizes[16];
  float *output;
  RETURN_IF_ERROR(get_input(context, INDICES, &indices));
  if (indices.rank + state->rank > 16) return fail("GatherBlockQuantized: too many axes");
  const size_t count = count_elements(indices.sizes, indices.rank);
  const bool is_wide = indices.type == ELEMENT_INT64;
  const Lookup lookup = {matrix, kernel->kernels, is_wide ? indices.data : NULL,
                         is_wide ? NULL : indices.data, NULL};
  for (size_t i = 0; i < count; i++) {
    const int64_t index = index_at(&lookup, i);
    if (index < 0 || index >= (int64_t)matrix->rows)
      return fail("GatherBlockQuantized: index %lld is outside of a table of %zu rows",
                  (long long)(is_wide ? lookup.wide[i] : lookup.narrow[i]), matrix->rows);
  }
  memcpy(sizes, indices.sizes, indices.rank * sizeof *sizes);
  memcpy(sizes + indices.rank, state->sizes + 1, (state->rank - 1) * sizeof *sizes);
  const size_t rank = indices.rank + state->rank - 1;
  sizes[rank - 1] *= 8 / matrix->bits;
  RETURN_IF_ERROR(get_output(context, 0, sizes, rank, (void **)&output));
  Lookup task = lookup;
  task.output = output;
  const Parallel parallel = session_threads(context);
  if (count) parallel.run(parallel.context, look_up, &task, count);
  return NULL;
}

static const char *const float_types[] = {"T2", NULL};

const Operator gather_block_quantized = {
    .domain = "com.microsoft",
    .name = "GatherBlockQuantized",
    .first_version = 1,
    .last_version = 1,
    .float_types = float_types,
    .supports = supports,
    .state_size = sizeof(State),
    .create = create,
    .compute = compute,
};
