// MatMulNBits with the nodes that prepare its input: a norm or a gated activation, then a rotation,
// then two parts of it.
// A step through ONNX Runtime's graph costs as much as many of these nodes compute.

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "fusions.h"
#include "matmul_nbits.h"

typedef enum { NOTHING, NORM, GATE } Preparation;

// What was found in the graph.
typedef struct {
  const OrtNode *nodes[MOST_FUSED];
  size_t count;
  Rotation rotation;  // size: 0 if there is none
  Preparation preparation;
  Gate gate;
  Node norm;
  size_t norm_inputs[4];      // of the norm
  const OrtValueInfo *input;  // unless a norm prepares it
  const OrtNode *last;        // the product, or the sum of its two parts
} Chain;

typedef struct {
  OrtNodeComputeInfo runtime;
  const Kernels *kernels;
  OrtMemoryInfo *memory;
  Preparation preparation;
  Gate gate;
  float epsilon;
  size_t rotation;  // size; 0: none
  float rotation_scale;
  size_t inputs[4];             // numbers of the fused node's inputs, as read_norm takes them
  size_t output, sum;           // numbers of its outputs: the product, the norm's sum or NO_INPUT
  QuantizedMatrix matrix;       // without its data
  size_t weights[BIAS + 1];     // numbers of the product's inputs
  _Atomic(const void *) constants[BIAS + 1];  // their data, once the first run has asked for it
} FusedProduct;

static void add_nodes(Chain *chain, const OrtNode *const *nodes, size_t count) {
  memcpy(chain->nodes + chain->count, nodes, count * sizeof *nodes);
  chain->count += count;
}

static void find_chain_rotation(Chain *chain) {
  const OrtNode *join = producer(chain->input), *matmul;
  Node reshape, described;
  bool fits;
  if (!join || !is_read_only_by(chain->input, chain->nodes, chain->count)) return;
  if (!is_operator(join, "", "Reshape")) return;
  if (!succeeds(describe_node(join, &reshape, &fits)) || !fits || !reshape.input_count) return;
  matmul = producer(reshape.input_infos[0]);
  if (!matmul || !is_operator(matmul, "", "MatMul")) return;
  if (!succeeds(describe_node(matmul, &described, &fits)) || !fits) return;
  if (!find_rotation(&described, &chain->rotation) || chain->rotation.nodes[2] != join) {
    chain->rotation.size = 0;
    return;
  }
  add_nodes(chain, chain->rotation.nodes, 3);
  chain->input = chain->rotation.input;
}

// The gated activation whose last node is `mul`.
static bool find_chain_gate(const Node *mul, Gate *gate) {
  for (size_t i = 0; i < 2 && i < mul->input_count; i++) {
    const OrtNode *split = producer(mul->input_infos[i]);
    Node described;
    bool fits;
    if (!split || !is_operator(split, "", "Split")) continue;
    if (!succeeds(describe_node(split, &described, &fits)) || !fits) continue;
    if (find_gate(&described, gate) && gate->nodes[2] == mul->node) return true;
  }
  return false;
}

static void find_preparation(Chain *chain) {
  const OrtNode *source = producer(chain->input);
  const OrtValueInfo *outputs[MOST_INPUTS];
  bool fits;
  if (!source || !is_read_only_by(chain->input, chain->nodes, chain->count)) return;
  if (!succeeds(describe_node(source, &chain->norm, &fits)) || !fits) return;
  if (is_operator(source, "", "Mul") && find_chain_gate(&chain->norm, &chain->gate)) {
    chain->preparation = GATE;
    chain->input = chain->gate.input;
    add_nodes(chain, chain->gate.nodes, 3);
  } else if (is_norm(&chain->norm, chain->norm_inputs)) {
    if (!succeeds(ORT(Node_GetOutputs)(source, outputs, chain->norm.output_count))) return;
    if (!is_same(outputs[0], chain->input)) return;  // another output, such as the sum
    chain->preparation = NORM;
    add_nodes(chain, &source, 1);
  }
}

static bool find_chain(const Node *product, Chain *chain) {
  TwoParts parts;
  *chain = (Chain){.nodes = {product->node},
                   .count = 1,
                   .input = product->input_infos[ACTIVATIONS],
                   .last = product->node};
  if (product->inputs[ACTIVATIONS].type != ELEMENT_FLOAT || !matmul_nbits.supports(product))
    return false;
  if (find_two_parts(product, &parts)) {
    chain->count = 0;
    add_nodes(chain, parts.nodes, parts.count);
    chain->input = parts.input;
    chain->last = parts.sum;
  }
  find_chain_rotation(chain);
  find_preparation(chain);
  return chain->count > 1;
}

static size_t find(const Node *product, const OrtNode *nodes[MOST_FUSED]) {
  Chain chain;
  if (!find_chain(product, &chain)) return 0;
  memcpy(nodes, chain.nodes, chain.count * sizeof *nodes);
  return chain.count;
}

static void release_state(OrtNodeComputeInfo *self, void *state) {
  FusedProduct *product = state;
  (void)self;
  if (product->memory) ORT(ReleaseMemoryInfo)(product->memory);
  product->memory = NULL;
}

// Tokens whose input is prepared in parallel.
typedef struct {
  const FusedProduct *product;
  const Norm *norm;  // also of other inputs: only `input` then
  float *sum, *prepared;
  size_t tokens, chunk;
} Task;

static void prepare_chunk(void *state, size_t index) {
  const Task *task = state;
  const FusedProduct *product = task->product;
  const Norm *norm = task->norm;
  const Kernels *kernels = product->kernels;
  const size_t first = index * task->chunk, rest = task->tokens - first;
  const size_t tokens = rest < task->chunk ? rest : task->chunk, size = product->matrix.columns;
  const float *input = norm->input.data, *skip = norm->skip.data;
  float *prepared = task->prepared + first * size;
  if (product->preparation == NORM) {
    kernels->rms_norm(input + first * size, skip ? skip + first % norm->skip_tokens * size : NULL,
                      norm->skip_tokens, norm->bias.data, norm->gain.data, product->epsilon,
                      prepared, task->sum ? task->sum + first * size : NULL, tokens, size);
    input = prepared;
  } else if (product->preparation == GATE) {
    kernels->gated_activation(input + 2 * first * size, product->gate.second_is_gate,
                              product->gate.alpha, product->gate.cubic, prepared, tokens, size);
    input = prepared;
  } else {
    input += first * size;
  }
  if (product->rotation)
    kernels->hadamard(input, prepared, tokens * size / product->rotation, product->rotation,
                      product->rotation_scale);
}

// The matrix and its bias. Constants keep their place as long as the session lives.
static OrtStatus *read_matrix(FusedProduct *product, const OrtKernelContext *context,
                              QuantizedMatrix *matrix, const float **bias) {
  const void *data[BIAS + 1] = {NULL};
  for (size_t i = VALUES; i <= BIAS; i++) {
    data[i] = atomic_load(&product->constants[i]);
    if (data[i] || product->weights[i] == NO_INPUT) continue;
    Tensor tensor;
    RETURN_IF_ERROR(get_input(context, product->weights[i], &tensor));
    atomic_store(&product->constants[i], data[i] = tensor.data);
  }
  *matrix = product->matrix;
  matrix->values = data[VALUES];
  matrix->scales = data[SCALES];
  matrix->zero_points = data[ZERO_POINTS];
  *bias = data[BIAS];
  return NULL;
}

static OrtStatus *run(const FusedProduct *product, const QuantizedMatrix *matrix,
                      const float *bias, Task *task, float *output, OrtKernelContext *context) {
  _Alignas(64) char small[SMALL_SCRATCH];
  OrtAllocator *allocator = NULL;
  void *to_release = NULL;
  const size_t prepared = (task->tokens * matrix->columns + 15) / 16 * 64;
  const size_t bytes = prepared + product->kernels->scratch_bytes(matrix, task->tokens);
  char *scratch = small;
  if (bytes > sizeof small) {
    RETURN_IF_ERROR(ORT(KernelContext_GetAllocator)(context, product->memory, &allocator));
    scratch = get_scratch(allocator, bytes, &to_release);
  }
  if (scratch) {
    const Parallel parallel = session_threads(context);
    const float *input = task->norm->input.data;
    if (product->preparation != NOTHING || product->rotation) {
      input = task->prepared = (float *)scratch;
      parallel.run(parallel.context, prepare_chunk, task,
                   (task->tokens + task->chunk - 1) / task->chunk);
    }
    product->kernels->multiply(matrix, input, bias, output, task->tokens, scratch + prepared,
                               &parallel);
  }
  if (to_release) allocator->Free(allocator, to_release);
  if (allocator) ORT(ReleaseAllocator)(allocator);
  return scratch ? NULL : fail("MatMulNBits: out of memory");
}

static OrtStatus *compute(OrtNodeComputeInfo *self, void *state, OrtKernelContext *context) {
  FusedProduct *product = state;
  QuantizedMatrix matrix;
  Norm norm = {0};
  const float *bias;
  float *output, *sum = NULL;
  int64_t sizes[8];
  (void)self;
  RETURN_IF_ERROR(read_matrix(product, context, &matrix, &bias));
  if (product->preparation == NORM)
    RETURN_IF_ERROR(read_norm(context, product->inputs, &norm));
  else
    RETURN_IF_ERROR(get_input(context, product->inputs[0], &norm.input));
  const Tensor *input = &norm.input;
  const size_t columns = matrix.columns * (product->preparation == GATE ? 2 : 1);
  if (input->rank < 1 || input->rank > 8 || input->sizes[input->rank - 1] != (int64_t)columns)
    return fail("MatMulNBits: the last axis of its input has not %zu elements", columns);
  memcpy(sizes, input->sizes, input->rank * sizeof *sizes);
  sizes[input->rank - 1] = (int64_t)matrix.rows;
  RETURN_IF_ERROR(get_output(context, product->output, sizes, input->rank, (void **)&output));
  if (product->sum != NO_INPUT)
    RETURN_IF_ERROR(get_output(context, product->sum, input->sizes, input->rank, (void **)&sum));
  const size_t tokens = count_elements(input->sizes, input->rank - 1);
  if (!tokens) return NULL;
  Task task = {product, &norm, sum, NULL, tokens, 1 + 16384 / columns};
  if (norm.skip.data && norm.skip_tokens < tokens) task.chunk = tokens;  // skip repeats
  return run(product, &matrix, bias, &task, output, context);
}

OrtStatus *find_input(const Node *node, const OrtValueInfo *value, size_t *index) {
  const char *wanted = NULL, *name = NULL;
  *index = NO_INPUT;
  if (!value) return NULL;
  RETURN_IF_ERROR(ORT(GetValueInfoName)(value, &wanted));
  for (size_t i = 0; i < node->input_count; i++) {
    if (!node->input_infos[i]) continue;
    RETURN_IF_ERROR(ORT(GetValueInfoName)(node->input_infos[i], &name));
    if (!strcmp(name, wanted)) *index = i;
  }
  return *index == NO_INPUT ? fail("the fused node lacks its input %s", wanted) : NULL;
}

// The number of output `index` of `source` among the fused node's outputs; NO_INPUT if absent.
static OrtStatus *find_output(const Node *fused, const Node *source, size_t index, size_t *found) {
  const OrtValueInfo *mine[MOST_INPUTS], *theirs[MOST_INPUTS];
  const char *wanted = NULL, *name = NULL;
  *found = NO_INPUT;
  if (index >= source->output_count || !source->outputs[index]) return NULL;
  RETURN_IF_ERROR(ORT(Node_GetOutputs)(source->node, theirs, source->output_count));
  RETURN_IF_ERROR(ORT(Node_GetOutputs)(fused->node, mine, fused->output_count));
  RETURN_IF_ERROR(ORT(GetValueInfoName)(theirs[index], &wanted));
  for (size_t i = 0; i < fused->output_count; i++) {
    if (!mine[i]) continue;
    RETURN_IF_ERROR(ORT(GetValueInfoName)(mine[i], &name));
    if (!strcmp(name, wanted)) *found = i;
  }
  return NULL;
}

static OrtStatus *compile(const Node *source, const Node *fused, OrtNodeComputeInfo **out) {
  Chain chain;
  Node last;
  bool fits;
  FusedProduct *product = calloc(1, sizeof *product);
  if (!product) return fail("edgetie: out of memory");
  *out = &product->runtime;
  product->runtime = (OrtNodeComputeInfo){API_VERSION, return_self, compute, release_state};
  product->kernels = select_kernels();
  if (!find_chain(source, &chain)) return fail("MatMulNBits: its nodes changed");
  product->preparation = chain.preparation;
  product->gate = chain.gate;
  product->rotation = chain.rotation.size;
  product->rotation_scale = chain.rotation.scale;
  product->matrix = describe_matrix(source);
  product->sum = NO_INPUT;
  if (chain.preparation == NORM) {
    const Node *norm = &chain.norm;
    product->epsilon = node_float(norm, "epsilon", 1e-5f);
    for (size_t i = 0; i < 4; i++) {
      const size_t input = chain.norm_inputs[i];
      RETURN_IF_ERROR(find_input(fused, input < norm->input_count ? norm->input_infos[input] : NULL,
                                 &product->inputs[i]));
    }
    RETURN_IF_ERROR(find_output(fused, norm, 3, &product->sum));
  } else {
    RETURN_IF_ERROR(find_input(fused, chain.input, &product->inputs[0]));
  }
  for (size_t i = VALUES; i <= BIAS; i++)
    RETURN_IF_ERROR(find_input(fused, i < source->input_count ? source->input_infos[i] : NULL,
                               &product->weights[i]));
  RETURN_IF_ERROR(describe_node(chain.last, &last, &fits));
  RETURN_IF_ERROR(find_output(fused, &last, 0, &product->output));
  return ORT(CreateCpuMemoryInfo)(ORT_ARENA_ALLOCATOR, ORT_DEFAULT_MEMORY, &product->memory);
}

const Fusion fused_product = {"com.microsoft", "MatMulNBits", find, compile};
