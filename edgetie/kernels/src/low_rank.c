// What an adapter adds to a linear layer: Add(y, MatMul(MatMul(x, A), B)), where A and B are inputs
// of the graph. The three nodes run as one.

#include "operator.h"

enum { Y, X, DOWN, UP };
enum { TOKENS_OF_TASK = 8, COLUMNS_OF_TASK = 512, PRODUCTS_OF_THREAD = 16384 };

// Whether a value is a float matrix that callers may change from run to run.
static bool is_matrix_input(const Node *node, size_t index) {
  const Value *value = &node->inputs[index];
  return value->present && value->type == ELEMENT_FLOAT && value->rank == 2 && !value->constant &&
         !producer(node->input_infos[index]);
}

// The MatMul by such a matrix that computes a value which nothing else reads.
static bool multiplies(const OrtValueInfo *value, Node *matmul) {
  bool fits;
  const OrtNode *source = producer(value);
  return source && only_consumer(value) && is_operator(source, "", "MatMul") &&
         succeeds(describe_node(source, matmul, &fits)) && fits && is_matrix_input(matmul, 1);
}

static bool match(const Node *add, Match *match) {
  Node up, down;
  if (add->input_count != 2 || !multiplies(add->input_infos[1], &up)) return false;
  if (!multiplies(up.input_infos[0], &down)) return false;
  const Value *x = &down.inputs[0], *y = &add->inputs[0];
  if (x->type != ELEMENT_FLOAT || y->type != ELEMENT_FLOAT || !x->has_shape || !y->has_shape)
    return false;
  if (x->rank != y->rank || x->rank < 2 || y->sizes[y->rank - 1] != up.inputs[1].sizes[1])
    return false;
  match->inputs[X] = down.input_infos[0];
  match->inputs[DOWN] = down.input_infos[1];
  match->inputs[UP] = up.input_infos[1];
  match->nodes[1] = up.node, match->nodes[2] = down.node;
  match->node_count = 3;
  return true;
}

static OrtStatus *plan(const void *state, Run *run) {
  const Tensor *y = run->inputs[Y], *x = run->inputs[X];
  const int64_t *down = run->inputs[DOWN]->sizes, *up = run->inputs[UP]->sizes;
  (void)state;
  bool fits = x->rank == y->rank && x->rank >= 2 && x->sizes[x->rank - 1] == down[0] &&
              down[1] == up[0] && y->sizes[y->rank - 1] == up[1];
  for (size_t i = 0; fits && i + 1 < x->rank; i++) fits = x->sizes[i] == y->sizes[i];
  if (!fits) return fail("adapter: its matrices do not fit the layer, or each other");
  run->scratch_bytes = count_elements(x->sizes, x->rank - 1) * (size_t)down[1] * sizeof(float);
  set_sizes(run->outputs[0], y->sizes, y->rank);
  return NULL;
}

typedef struct {
  const Run *run;
  size_t tokens, in, rank, out, chunks;  // chunks: of columns
} Product;

static size_t tokens_from(const Product *product, size_t first) {
  const size_t rest = product->tokens - first;
  return rest < TOKENS_OF_TASK ? rest : TOKENS_OF_TASK;
}

static void multiply_down(void *state, size_t index) {
  const Product *product = state;
  const Run *run = product->run;
  const size_t first = index * TOKENS_OF_TASK, rank = product->rank;
  run->kernels->multiply_add((const float *)run->inputs[X]->data + first * product->in,
                             run->inputs[DOWN]->data, NULL, (float *)run->scratch + first * rank,
                             tokens_from(product, first), product->in, rank, 0, rank);
}

static void multiply_up(void *state, size_t index) {
  const Product *product = state;
  const Run *run = product->run;
  const size_t first = index / product->chunks * TOKENS_OF_TASK, out = product->out;
  const size_t column = index % product->chunks * COLUMNS_OF_TASK, end = column + COLUMNS_OF_TASK;
  run->kernels->multiply_add((const float *)run->scratch + first * product->rank,
                             run->inputs[UP]->data,
                             (const float *)run->inputs[Y]->data + first * out,
                             (float *)run->outputs[0]->data + first * out,
                             tokens_from(product, first), product->rank, out, column,
                             end < out ? end : out);
}

// Run tasks that multiply `columns` of all tokens, on this thread alone if that is faster.
static void run_tasks(Product *product, void (*task)(void *, size_t), size_t count,
                      size_t columns) {
  const Parallel *parallel = product->run->parallel;
  if (product->tokens * columns * (product->rank + 1) > PRODUCTS_OF_THREAD)
    parallel->run(parallel->context, task, product, count);
  else
    for (size_t i = 0; i < count; i++) task(product, i);
}

static void compute(const void *state, const Run *run) {
  const Tensor *x = run->inputs[X];
  const int64_t *up = run->inputs[UP]->sizes;
  Product product = {run, count_elements(x->sizes, x->rank - 1), (size_t)x->sizes[x->rank - 1],
                     (size_t)up[0], (size_t)up[1], 0};
  const size_t blocks = (product.tokens + TOKENS_OF_TASK - 1) / TOKENS_OF_TASK;
  product.chunks = (product.out + COLUMNS_OF_TASK - 1) / COLUMNS_OF_TASK;
  (void)state;
  if (product.rank) run_tasks(&product, multiply_down, blocks, product.in);
  run_tasks(&product, multiply_up, blocks * product.chunks, product.out);
}

const Operator low_rank = {"", "Add", 7, 14, match, plan, compute};
