// Gated feed-forward networks (Shazeer 2020): Split in two halves, an activation of one, Mul with
// the other. The three nodes run as one.

#include <stdlib.h>
#include <string.h>

#include "fusions.h"

typedef struct {
  OrtNodeComputeInfo runtime;
  const Kernels *kernels;
  Gate gate;
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

bool find_gate(const Node *split, Gate *gate) {
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
    *gate = (Gate){.nodes = {split->node, activation, product},
                   .input = split->input_infos[0],
                   .second_is_gate = which == 1,
                   .alpha = is_quick ? node_float(&function, "alpha", 1.702f) : 1.5957691216f,
                   .cubic = is_quick ? 0 : 0.044715f};
    return true;
  }
  return false;
}

static size_t find(const Node *split, const OrtNode *nodes[MOST_FUSED]) {
  Gate gate;
  if (!find_gate(split, &gate)) return 0;
  memcpy(nodes, gate.nodes, sizeof gate.nodes);
  return 3;
}

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
  a->kernels->gated_activation(task->input + 2 * first * task->size, a->gate.second_is_gate,
                               a->gate.alpha, a->gate.cubic, task->output + first * task->size,
                               tokens, task->size);
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
  (void)fused;
  GatedActivation *activation = calloc(1, sizeof *activation);
  if (!activation) return fail("edgetie: out of memory");
  *out = &activation->runtime;
  activation->runtime = (OrtNodeComputeInfo){API_VERSION, return_self, compute, keep_self};
  activation->kernels = select_kernels();
  return find_gate(split, &activation->gate) ? NULL : fail("gated activation: its nodes changed");
}

const Fusion gated_activation = {"", "Split", find, compile};
