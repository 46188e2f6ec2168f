// Root mean square norms: RMSNormalization, SimplifiedLayerNormalization and, with the sum of two
// inputs in front, com.microsoft::SkipSimplifiedLayerNormalization.

#include "operator.h"

// Numbers of the inputs: NONE if the operator has no such input.
enum { NONE = MOST_INPUTS };
typedef struct {
  float epsilon;
  uint8_t skip, gain, bias;
} State;

static bool is_last_axis(const Node *node) {
  const int64_t axis = node_int(node, "axis", -1);
  const Value *input = &node->inputs[0], *gain = &node->inputs[1];
  if (!input->present || !input->has_shape) return false;
  if (gain->rank != 1 || node_int(node, "stash_type", 1) != 1) return false;
  if (gain->sizes[0] < 2) return false;  // unknown, or one value for all
  return axis == -1 || axis == (int64_t)input->rank - 1;
}

static bool match_node(const Node *node, Match *match, State state) {
  if (node->inputs[0].type != ELEMENT_FLOAT || node->inputs[state.gain].type != ELEMENT_FLOAT)
    return false;
  if (!node->outputs[0] || node->outputs[1] || node->outputs[2]) return false;
  state.epsilon = node_float(node, "epsilon", 1e-5f);
  *(State *)match->state = state;
  return true;
}

static bool match(const Node *node, Match *match) {
  return is_last_axis(node) && match_node(node, match, (State){0, NONE, 1, NONE});
}

// Inputs: input, skip, gain, bias. Outputs: output, mean, inverse deviation, sum.
static bool match_skip(const Node *node, Match *match) {
  return match_node(node, match, (State){0, 1, 2, 3});
}

static size_t last_size(const Tensor *tensor) { return (size_t)tensor->sizes[tensor->rank - 1]; }

static bool has_size(const Tensor *tensor, size_t size) {
  return count_elements(tensor->sizes, tensor->rank) == size;
}

static const Tensor *optional_input(const Run *run, size_t index) {
  static const Tensor absent;
  return index == NONE ? &absent : run->inputs[index];
}

// Whether skip has the last two axes of input and repeats a whole number of times.
static bool fits(const Tensor *input, const Tensor *skip) {
  if (input->rank < 2 || skip->rank < 2) return false;
  for (size_t i = 1; i <= 2; i++)
    if (input->sizes[input->rank - i] != skip->sizes[skip->rank - i]) return false;
  const size_t items = count_elements(input->sizes, input->rank - 2);
  const size_t skip_items = count_elements(skip->sizes, skip->rank - 2);
  return skip_items ? items % skip_items == 0 : items == 0;
}

static OrtStatus *plan(const void *saved, Run *run) {
  const State *state = saved;
  const Tensor *input = run->inputs[0], *skip = optional_input(run, state->skip);
  const Tensor *bias = optional_input(run, state->bias);
  if (input->rank < 1 || !has_size(run->inputs[state->gain], last_size(input)))
    return fail("RMS norm: the scale has not one value for each of the last axis'");
  if (skip->present && !fits(input, skip))
    return fail("SkipSimplifiedLayerNormalization: skip does not fit the input");
  if (bias->present && !has_size(bias, last_size(input)))
    return fail("SkipSimplifiedLayerNormalization: bias does not fit the input");
  set_sizes(run->outputs[0], input->sizes, input->rank);
  if (run->outputs[3]) set_sizes(run->outputs[3], input->sizes, input->rank);
  return NULL;
}

typedef struct {
  const State *state;
  const Run *run;
  size_t size, skip_rows;
  bool repeats_skip;
} Rows;

static void compute_rows(const void *state, size_t first, size_t count) {
  const Rows *rows = state;
  const Run *run = rows->run;
  const size_t at_once = rows->repeats_skip ? 1 : count;
  const float *skip = optional_input(run, rows->state->skip)->data;
  const float *bias = optional_input(run, rows->state->bias)->data;
  for (size_t row = first; row < first + count; row += at_once) {
    const size_t start = row * rows->size;
    float *sum = run->outputs[3] ? (float *)run->outputs[3]->data + start : NULL;
    run->kernels->rms_norm((const float *)run->inputs[0]->data + start,
                           skip ? skip + row % rows->skip_rows * rows->size : NULL, bias,
                           run->inputs[rows->state->gain]->data, rows->state->epsilon,
                           (float *)run->outputs[0]->data + start, sum, at_once, rows->size);
  }
}

static void compute(const void *state, const Run *run) {
  const Tensor *input = run->inputs[0], *skip = optional_input(run, ((const State *)state)->skip);
  const size_t count = count_elements(input->sizes, input->rank - 1);
  Rows rows = {state, run, last_size(input), count, false};
  if (skip->present) rows.skip_rows = count_elements(skip->sizes, skip->rank - 1);
  rows.repeats_skip = rows.skip_rows < count;
  for_each_row(run->parallel, compute_rows, &rows, count, rows.size);
}

const Operator rms_normalization = {"", "RMSNormalization", 23, 23, match, plan, compute};
const Operator simplified_norm = {"", "SimplifiedLayerNormalization", 1, 1, match, plan, compute};
const Operator skip_simplified_norm = {
    "com.microsoft", "SkipSimplifiedLayerNormalization", 1, 1, match_skip, plan, compute};
