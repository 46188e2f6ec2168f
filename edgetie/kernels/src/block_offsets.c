// Offsets of blocks: quantized checkpoints whose blocks have a scale and a minimum store the minimum
// as a float, and standard operators add offset * sum(x) of each block to the product y:
//
//   Add(y, Reshape(Gemm(ReduceSum(Reshape(x)), offsets), Shape(y)))
//
// These kernels take the offset with the zero point, from the same sums.

#include <string.h>

#include "matmul_nbits.h"

enum { ADD, RESTORE, SHAPE, GEMM, SUMS, SPLIT, COUNT };  // the nodes, from the last to the first

// Describe the node of a type that computes a value, if only `reader` reads it.
static bool find_producer(const OrtValueInfo *value, const char *type, const OrtNode *reader,
                          Node *node) {
  bool fits;
  const OrtNode *source = value ? producer(value) : NULL;
  return source && is_operator(source, "", type) && is_read_only_by(value, &reader, 1) &&
         succeeds(describe_node(source, node, &fits)) && fits;
}

// Find the Add that reads a value, and the Reshape that computes its other input.
static bool find_sum(const OrtValueInfo *value, Node *add, Node *restore) {
  const OrtNode *readers[2];
  int64_t inputs[2];
  size_t count = 0;
  bool fits;
  if (!succeeds(ORT(ValueInfo_GetValueNumConsumers)(value, &count)) || count != 2) return false;
  if (!succeeds(ORT(ValueInfo_GetValueConsumers)(value, readers, inputs, 2))) return false;
  const OrtNode *sum = readers[is_operator(readers[0], "", "Add") ? 0 : 1];
  if (!is_operator(sum, "", "Add") || !succeeds(describe_node(sum, add, &fits)) || !fits)
    return false;
  const bool is_first = is_same(add->input_infos[0], value);
  return find_producer(add->input_infos[is_first ? 1 : 0], "Reshape", sum, restore);
}

static bool has_integers(const Node *node, size_t index, const int64_t *values, size_t count) {
  Tensor tensor;
  if (!succeeds(node_constant(node, index, &tensor)) || !tensor.present) return false;
  if (tensor.type != ELEMENT_INT64 || count_elements(tensor.sizes, tensor.rank) != count)
    return false;
  return !memcmp(tensor.data, values, count * sizeof *values);
}

// Whether the nodes compute (tokens, blocks): the sums of `input` over each block.
static bool sums_blocks(const Node *sums, const Node *split, const OrtValueInfo *input,
                        const QuantizedMatrix *matrix) {
  const int64_t shape[3] = {-1, (int64_t)matrix->blocks, (int64_t)matrix->block_size}, axis = 2;
  return is_same(split->input_infos[0], input) && has_integers(split, 1, shape, 3) &&
         !node_int(sums, "keepdims", 1) && has_integers(sums, 1, &axis, 1);
}

static bool multiplies_offsets(const Node *gemm, const QuantizedMatrix *matrix) {
  const Value *offsets = &gemm->inputs[1];
  return offsets->constant && offsets->type == ELEMENT_FLOAT && offsets->rank == 2 &&
         offsets->sizes[0] == (int64_t)matrix->rows &&
         offsets->sizes[1] == (int64_t)matrix->blocks && node_int(gemm, "transB", 0) &&
         !node_int(gemm, "transA", 0) && node_float(gemm, "alpha", 1) == 1 &&
         (gemm->input_count < 3 || !gemm->inputs[2].present);
}

void join_block_offsets(Match *match) {
  const QuantizedMatrix *matrix = (const QuantizedMatrix *)match->state;
  const OrtValueInfo *product = match->outputs[0];
  Node nodes[COUNT];
  if (match->node_count + COUNT > MOST_NODES || matrix->columns % matrix->block_size) return;
  if (!find_sum(product, &nodes[ADD], &nodes[RESTORE])) return;
  const OrtNode *restore = nodes[RESTORE].node;
  if (!find_producer(nodes[RESTORE].input_infos[0], "Gemm", restore, &nodes[GEMM])) return;
  if (!find_producer(nodes[RESTORE].input_infos[1], "Shape", restore, &nodes[SHAPE])) return;
  if (!is_same(nodes[SHAPE].input_infos[0], product) || node_int(&nodes[SHAPE], "start", 0) ||
      node_has(&nodes[SHAPE], "end"))
    return;
  if (!find_producer(nodes[GEMM].input_infos[0], "ReduceSum", nodes[GEMM].node, &nodes[SUMS]))
    return;
  if (!find_producer(nodes[SUMS].input_infos[0], "Reshape", nodes[SUMS].node, &nodes[SPLIT]))
    return;
  if (!sums_blocks(&nodes[SUMS], &nodes[SPLIT], match->inputs[ACTIVATIONS], matrix)) return;
  if (!multiplies_offsets(&nodes[GEMM], matrix) || !nodes[ADD].outputs[0]) return;
  for (size_t i = 0; i < COUNT; i++) match->nodes[match->node_count++] = nodes[i].node;
  match->inputs[OFFSETS] = nodes[GEMM].input_infos[1];
  match->outputs[0] = nodes[ADD].outputs[0];
}
