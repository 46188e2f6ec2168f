// Gated feed-forward networks (Shazeer 2020): Split in two halves, an activation of one, Mul with
// the other. The three nodes run as one.

#include <string.h>

#include "operator.h"

// The activation is x * sigmoid(alpha * (x + cubic * x^3)).
typedef struct {
  bool second_is_gate;
  float alpha, cubic;
} Gate;

static bool halves_last_axis(const Node *split) {
  const Value *input = &split->inputs[0];
  if (!input->has_shape || input->type != ELEMENT_FLOAT || split->output_count != 2) return false;
  const int64_t axis = node_int(split, "axis", 0), rank = (int64_t)input->rank;
  const int64_t size = input->sizes[rank - 1];
  if ((axis != -1 && axis != rank - 1) || size < 2 || size % 2) return false;
  if (split->input_count < 2 || !split->inputs[1].present) return true;
  Tensor sizes;
  if (!succeeds(node_constant(split, 1, &sizes)) || !sizes.data) return false;
  const int64_t *each = sizes.data;
  return count_elements(sizes.sizes, sizes.rank) == 2 && each[0] == each[1];
}

static bool is_activation(const OrtNode *node) {
  Node described;
  bool fits;
  if (!is_operator(node, "com.microsoft", "QuickGelu") &&
      !is_operator(node, "com.microsoft", "FastGelu"))
    return false;
  if (!succeeds(describe_node(node, &described, &fits)) || !fits) return false;
  return described.input_count < 2 || !described.inputs[1].present;  // no bias
}

static bool match(const Node *split, Match *match) {
  const OrtValueInfo *halves[2], *activated;
  if (!halves_last_axis(split) || !succeeds(ORT(Node_GetOutputs)(split->node, halves, 2)))
    return false;
  for (int which = 0; which < 2; which++) {
    const OrtNode *activation = only_consumer(halves[which]);
    const OrtNode *product = only_consumer(halves[1 - which]);
    if (!activation || !product || !is_activation(activation)) continue;
    if (!is_operator(product, "", "Mul")) continue;
    if (!succeeds(ORT(Node_GetOutputs)(activation, &activated, 1))) continue;
    if (only_consumer(activated) != product) continue;
    const Node function = {.node = activation};
    const bool is_quick = is_operator(activation, "com.microsoft", "QuickGelu");
    *(Gate *)match->state =
        (Gate){.second_is_gate = which == 1,
               .alpha = is_quick ? node_float(&function, "alpha", 1.702f) : 1.5957691216f,
               .cubic = is_quick ? 0 : 0.044715f};
    match->nodes[1] = activation, match->nodes[2] = product;
    match->node_count = 3;
    match->inputs[1] = match->outputs[1] = NULL;  // sizes, and a half
    return succeeds(ORT(Node_GetOutputs)(product, match->outputs, 1));
  }
  return false;
}

static OrtStatus *plan(const void *state, Run *run) {
  const Tensor *input = run->inputs[0];
  int64_t sizes[MOST_AXES];
  (void)state;
  if (input->rank < 1 || input->sizes[input->rank - 1] % 2)
    return fail("gated activation: the last axis does not split in two halves");
  memcpy(sizes, input->sizes, sizeof sizes);
  sizes[input->rank - 1] /= 2;
  set_sizes(run->outputs[0], sizes, input->rank);
  return NULL;
}

typedef struct {
  const Gate *gate;
  const Run *run;
  size_t size;
} Rows;

static void compute_rows(const void *state, size_t first, size_t count) {
  const Rows *rows = state;
  const Gate *gate = rows->gate;
  const float *input = rows->run->inputs[0]->data;
  float *output = rows->run->outputs[0]->data;
  rows->run->kernels->gated_activation(input + 2 * first * rows->size, gate->second_is_gate,
                                       gate->alpha, gate->cubic, output + first * rows->size,
                                       count, rows->size);
}

static void compute(const void *state, const Run *run) {
  const Tensor *output = run->outputs[0];
  const Rows rows = {state, run, (size_t)output->sizes[output->rank - 1]};
  for_each_row(run->parallel, compute_rows, &rows,
               count_elements(output->sizes, output->rank - 1), rows.size);
}

const Operator gated_activation = {"", "Split", 13, 18, match, plan, compute};
