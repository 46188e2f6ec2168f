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

static bool match(const Node *node, Match *match) {
  if (!supports(node) || !node->outputs[0]) return false;
  QuantizedMatrix *matrix = (QuantizedMatrix *)match->state;
  const Value *table = &node->inputs[TABLE], *scales = &node->inputs[SCALES];
  matrix->bits = (int)node_int(node, "bits", 4);
  matrix->rows = (size_t)table->sizes[0];
  matrix->columns = count_elements(table->sizes + 1, table->rank - 1) * (8 / (size_t)matrix->bits);
  matrix->block_size = (size_t)node_int(node, "block_size", 128);
  matrix->blocks = count_elements(scales->sizes + 1, scales->rank - 1);
  return true;
}

static int64_t index_at(const Tensor *indices, size_t i) {
  return indices->type == ELEMENT_INT64 ? ((const int64_t *)indices->data)[i]
                                        : ((const int32_t *)indices->data)[i];
}

static OrtStatus *plan(const void *state, Run *run) {
  const QuantizedMatrix *matrix = state;
  const Tensor *indices = run->inputs[INDICES], *table = run->inputs[TABLE];
  const int64_t rows = (int64_t)matrix->rows;
  int64_t sizes[2 * MOST_AXES];
  const size_t rank = indices->rank + table->rank - 1;
  if (rank > MOST_AXES) return fail("GatherBlockQuantized: too many axes");
  for (size_t i = 0; i < count_elements(indices->sizes, indices->rank); i++) {
    const int64_t index = index_at(indices, i);
    if (index < -rows || index >= rows)
      return fail("GatherBlockQuantized: index %lld is outside of a table of %lld rows",
                  (long long)index, (long long)rows);
  }
  memcpy(sizes, indices->sizes, indices->rank * sizeof *sizes);
  memcpy(sizes + indices->rank, table->sizes + 1, (table->rank - 1) * sizeof *sizes);
  sizes[rank - 1] *= 8 / matrix->bits;
  set_sizes(run->outputs[0], sizes, rank);
  return NULL;
}

typedef struct {
  QuantizedMatrix matrix;
  const Run *run;
} Lookup;

static void look_up(const void *state, size_t first, size_t count) {
  const Lookup *lookup = state;
  const QuantizedMatrix *matrix = &lookup->matrix;
  float *output = lookup->run->outputs[0]->data;
  for (size_t i = first; i < first + count; i++) {
    const int64_t index = index_at(lookup->run->inputs[INDICES], i);
    const size_t row = (size_t)(index < 0 ? index + (int64_t)matrix->rows : index);
    lookup->run->kernels->dequantize_row(matrix, row, output + i * matrix->columns);
  }
}

static void compute(const void *state, const Run *run) {
  Lookup lookup = {*(const QuantizedMatrix *)state, run};
  const Tensor *indices = run->inputs[INDICES];
  lookup.matrix.values = run->inputs[TABLE]->data;
  lookup.matrix.scales = run->inputs[SCALES]->data;
  lookup.matrix.zero_points = run->inputs[ZERO_POINTS]->data;
  for_each_row(run->parallel, look_up, &lookup, count_elements(indices->sizes, indices->rank),
               lookup.matrix.columns);
}

const Operator gather_block_quantized = {
    "com.microsoft", "GatherBlockQuantized", 1, 1, match, plan, compute};
