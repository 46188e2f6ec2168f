// Products over two parts of their activations, as the quantizer writes them for runtimes that
// round activations to 8 bits: the part that rounds without error and the rest are multiplied as
// twice as many tokens and added. These kernels multiply their sum, the activations, at once.

#include <string.h>

#include "matmul_nbits.h"

typedef struct {
  const OrtNode *nodes[MOST_NODES];
  size_t count;
  const OrtValueInfo *input;  // the activations
  const OrtNode *sum;         // the last node
} TwoParts;

// Add the nodes between `input` and `value`, if nothing else reads what they compute.
static bool collect(const OrtValueInfo *value, const OrtValueInfo *input, TwoParts *parts) {
  const OrtNode *node = producer(value);
  Node described;
  bool fits;
  if (is_same(value, input)) return true;
  if (!node) return false;
  for (size_t i = 0; i < parts->count; i++)
    if (parts->nodes[i] == node) return true;
  if (parts->count == MOST_NODES) return false;
  if (!succeeds(describe_node(node, &described, &fits)) || !fits) return false;
  if (described.output_count != 1) return false;
  parts->nodes[parts->count++] = node;
  for (size_t i = 0; i < described.input_count; i++)
    if (described.inputs[i].present && !described.inputs[i].constant &&
        !collect(described.input_infos[i], input, parts))
      return false;
  return true;
}

static bool are_all_inside(const TwoParts *parts, size_t first) {
  for (size_t i = first; i < parts->count; i++) {
    const OrtValueInfo *output;
    if (!succeeds(ORT(Node_GetOutputs)(parts->nodes[i], &output, 1))) return false;
    if (!is_read_only_by(output, parts->nodes, parts->count)) return false;
  }
  return true;
}

// Whether the outputs of the product are split along the tokens and added.
static bool find_sum(const Node *product, TwoParts *parts) {
  const OrtValueInfo *output, *halves[2];
  Node described;
  bool fits;
  if (!succeeds(ORT(Node_GetOutputs)(product->node, &output, 1))) return false;
  const OrtNode *split = only_consumer(output);
  if (!split || !is_operator(split, "", "Split")) return false;
  if (!succeeds(describe_node(split, &described, &fits)) || !fits) return false;
  if (node_int(&described, "axis", 0) != 1 || described.output_count != 2) return false;
  if (described.input_count > 1 && described.inputs[1].present) return false;
  if (!succeeds(ORT(Node_GetOutputs)(split, halves, 2))) return false;
  const OrtNode *sum = only_consumer(halves[0]);
  if (!sum || only_consumer(halves[1]) != sum || !is_operator(sum, "", "Add")) return false;
  parts->nodes[parts->count++] = split;
  parts->nodes[parts->count++] = parts->sum = sum;
  return true;
}

static bool find_two_parts(const Node *product, TwoParts *parts) {
  Node concat, rest;
  bool fits;
  *parts = (TwoParts){.nodes = {product->node}, .count = 1};
  const OrtNode *source = producer(product->input_infos[ACTIVATIONS]);
  if (!source || !is_operator(source, "", "Concat")) return false;
  if (product->input_count > BIAS && product->inputs[BIAS].present) return false;  // added twice
  if (!succeeds(describe_node(source, &concat, &fits)) || !fits || concat.input_count != 2)
    return false;
  if (node_int(&concat, "axis", 0) != 1 || concat.inputs[0].rank != 3) return false;
  if (!find_sum(product, parts)) return false;
  const OrtNode *difference = producer(concat.input_infos[1]);
  if (!difference || !is_operator(difference, "", "Sub")) return false;
  if (!succeeds(describe_node(difference, &rest, &fits)) || !fits) return false;
  if (!is_same(rest.input_infos[1], concat.input_infos[0])) return false;
  // of one shape: x - part would broadcast otherwise
  for (size_t i = 0; i < 2; i++)
    if (rest.inputs[i].rank != 3 || rest.inputs[i].sizes[2] != concat.inputs[0].sizes[2])
      return false;
  parts->input = rest.input_infos[0];
  parts->nodes[parts->count++] = source;
  parts->nodes[parts->count++] = difference;
  return collect(concat.input_infos[0], parts->input, parts) && are_all_inside(parts, 3);
}

void join_two_parts(const Node *product, Match *match) {
  TwoParts parts;
  if (!find_two_parts(product, &parts)) return;
  memcpy(match->nodes, parts.nodes, sizeof parts.nodes);
  match->node_count = parts.count;
  match->inputs[ACTIVATIONS] = parts.input;
  if (!succeeds(ORT(Node_GetOutputs)(parts.sum, match->outputs, 1))) match->outputs[0] = NULL;
}
