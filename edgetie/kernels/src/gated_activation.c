// Gated feed-forward networks (Shazeer 2020): Split in two halves, an activation of one, Mul with
// the other. The three nodes run as one.

#include <stdlib.h>
#include <string.h>

#include "operator.h"

// QuickGelu: x * sigmoid(alpha * x). FastGelu, GELU's tanh form, is the same with a cubic term.
typedef struct {
  OrtNodeComputeInfo runtime;
  const Kernels *kernels;
  bool second_is_gate;
  float alpha, cubic;
} GatedActivation;

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

static size_t find(const Node *split, const OrtNode *nodes[MOST_FUSED]) {
  const OrtValueInfo *halves[2], *activated;
  if (!halves_last_axis(split) || !succeeds(ORT(Node_GetOutputs)(split->node, halves, 2)))
    return 0;
  for (int gate = 0; gate < 2; gate++) {
    const OrtNode *activation = only_consumer(halves[gate]);
    const OrtNode *product = only_consumer(halves[1 - gate]);
    if (!activation || !product || !is_activation(activation)) continue;
    if (!is_operator(product, "", "Mul")) continue;
    if (!succeeds(ORT(Node_GetOutputs)(activation, &activated, 1))) continue;
    if (only_consumer(activated) != product) continue;
    nodes[0] = split->node, nodes[1] = activation, nodes[2] = product;
    return 3;
  }
  return 0;
}

static OrtStatus *create_state(OrtNodeComputeInfo *self, void *context, void **state) {
  (void)context;
  *state = self;
  return NULL;
}

static void release_state(OrtNodeComputeInfo *self, void *state) { (void)self, (void)state; }

typedef struct {
  const GatedActivation *activation;
  const float *input;
  float *output;
  size_t tokens, size, chunk;
} Task;

static void compute_chunk(void *state, size_t index) {
  const Task *task = state;
  const GatedActivation *a = task->activation;
  const size_t first = index * task->chunk, end = first + task->chunk;
  const size_t tokens = (end < task->tokens ? end : task->tokens) - first;
  a->kernels->gated_activation(task->input + 2 * first * task->size, a->second_is_gate, a->alpha,
                               a->cubic, task->output + first * task->size, tokens, task->size);
}

static OrtStatus *compute(OrtNodeComputeInfo *self, void *state, OrtKernelContext *context) {
  Tensor input;
  int64_t sizes[8];
  Task task = {.activation = state};
  (void)self;
  RETURN_IF_ERROR(get_input(context, 0, &input));
  if (input.rank < 1 || input.rank > 8 || input.sizes[input.rank - 1] % 2)
    return fail("gated activation: the last axis does not split in two halves");
  memcpy(sizes, input.sizes, input.rank * sizeof *sizes);
  sizes[input.rank - 1] /= 2;
  RETURN_IF_ERROR(get_output(context, 0, sizes, input.rank, (void **)&task.output));
  task.input = input.data;
  task.size = (size_t)sizes[input.rank - 1];
  task.tokens = count_elements(sizes, input.rank - 1);
  task.chunk = task.size ? 1 + 16384 / task.size : 1;
  if (!task.tokens) return NULL;
  const Parallel parallel = session_threads(context);
  parallel.run(parallel.context, compute_chunk, &task,
               (task.tokens + task.chunk - 1) / task.chunk);
  return NULL;
}

static OrtStatus *compile(const Node *split, const Node *fused, OrtNodeComputeInfo **out) {
  const OrtNode *nodes[MOST_FUSED];
  const OrtValueInfo *halves[2];
  (void)fused;
  GatedActivation *activation = calloc(1, sizeof *activation);
  if (!activation) return fail("edgetie: out of memory");
  *out = &activation->runtime;
  activation->runtime = (OrtNodeComputeInfo){API_VERSION, create_state, compute, release_state};
  activation->kernels = select_kernels();
  if (!find(split, nodes)) return fail("gated activation: its nodes changed");
  const Node function = {.node = nodes[1]};
  const bool is_quick = is_operator(nodes[1], "com.microsoft", "QuickGelu");
  activation->alpha = is_quick ? node_float(&function, "alpha", 1.702f) : 1.5957691216f;
  activation->cubic = is_quick ? 0 : 0.044715f;
  RETURN_IF_ERROR(ORT(Node_GetOutputs)(split->node, halves, 2));
  activation->second_is_gate = only_consumer(halves[1]) == nodes[1];
  return NULL;
}

const Fusion gated_activation = {"", "Split", find, compile};
