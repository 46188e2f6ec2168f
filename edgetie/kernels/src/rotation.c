// Rotations of blocks of channels by a Hadamard matrix, as the quantizer writes them: Reshape to
// blocks, MatMul, Reshape back. They run as one node, with the MatMulNBits that follows if nothing
// else reads the rotated values.

#include <stdlib.h>
#include <string.h>

#include "matmul_nbits.h"

enum { NO_INPUT = MOST_INPUTS };

typedef struct {
  OrtNodeComputeInfo runtime;
  const Kernels *kernels;
  OrtMemoryInfo *memory;
  size_t size;
  float scale;
  size_t input;            // index among the fused node's inputs
  QuantizedMatrix matrix;  // without its data; rows: 0 if no product follows
  size_t inputs[BIAS + 1]; // indices of the product's inputs among the fused node's, or NO_INPUT
} RotatedProduct;

// The size of a Hadamard matrix of Sylvester's construction times `scale`; 0 if it is none.
static size_t hadamard_size(const Node *node, float *scale) {
  const Value *value = &node->inputs[1];
  Tensor matrix;
  if (node->input_count != 2 || !value->has_shape || value->rank != 2) return 0;
  if (value->type != ELEMENT_FLOAT || value->sizes[0] != value->sizes[1]) return 0;
  const size_t size = (size_t)value->sizes[0];
  if (size < 2 || size > 4096 || (size & (size - 1))) return 0;
  if (!succeeds(node_constant(node, 1, &matrix)) || !matrix.data) return 0;
  const float *elements = matrix.data;
  *scale = elements[0];
  for (size_t i = 0; i < size; i++)
    for (size_t j = 0; j < size; j++) {
      const float sign = __builtin_popcountll(i & j) % 2 ? -1.0f : 1.0f;
      if (elements[i * size + j] != sign * *scale) return 0;
    }
  return size;
}

// Whether a node is a Reshape that keeps all axes but the last `count` ones, which become `sizes`.
static bool reshapes_last(const OrtNode *source, size_t rank, const int64_t *sizes, size_t count,
                          Node *node) {
  Tensor shape;
  bool fits;
  if (!is_operator(source, "", "Reshape")) return false;
  if (!succeeds(describe_node(source, node, &fits)) || !fits || node->input_count != 2)
    return false;
  if (node_int(node, "allowzero", 0)) return false;
  if (!succeeds(node_constant(node, 1, &shape)) || !shape.data || shape.rank != 1) return false;
  if ((size_t)shape.sizes[0] != rank - 1 + count) return false;
  const int64_t *elements = shape.data;
  for (size_t i = 0; i + 1 < rank; i++)
    if (elements[i]) return false;
  for (size_t i = 0; i < count; i++)
    if (elements[rank - 1 + i] != sizes[i]) return false;
  return true;
}

static size_t find(const Node *matmul, const OrtNode *nodes[MOST_FUSED]) {
  const OrtNode *split = NULL, *join, *product;
  const OrtValueInfo *rotated, *joined;
  float scale;
  size_t output;
  bool fits;
  Node reshape, next;
  const size_t size = hadamard_size(matmul, &scale);
  if (!size || !matmul->inputs[0].has_shape || matmul->inputs[0].rank < 3) return 0;
  const size_t rank = matmul->inputs[0].rank - 1;
  const int64_t blocks[2] = {matmul->inputs[0].sizes[rank - 1], (int64_t)size};
  const int64_t channels = blocks[0] * blocks[1];
  if (blocks[0] < 1) return 0;
  if (!succeeds(ORT(ValueInfo_GetValueProducer)(matmul->input_infos[0], &split, &output)))
    return 0;
  if (!split || only_consumer(matmul->input_infos[0]) != matmul->node) return 0;
  if (!reshapes_last(split, rank, blocks, 2, &reshape)) return 0;
  const Value *input = &reshape.inputs[0];
  if (!input->has_shape || input->rank != rank || input->sizes[rank - 1] != channels) return 0;
  if (!succeeds(ORT(Node_GetOutputs)(matmul->node, &rotated, 1))) return 0;
  join = only_consumer(rotated);
  if (!join || !reshapes_last(join, rank, &channels, 1, &reshape)) return 0;
  nodes[0] = split, nodes[1] = matmul->node, nodes[2] = join;
  if (!succeeds(ORT(Node_GetOutputs)(join, &joined, 1))) return 0;
  product = only_consumer(joined);
  if (!product || !is_operator(product, "com.microsoft", "MatMulNBits")) return 3;
  if (!succeeds(describe_node(product, &next, &fits)) || !fits) return 3;
  if (next.inputs[ACTIVATIONS].type != ELEMENT_FLOAT || !matmul_nbits.supports(&next)) return 3;
  nodes[3] = product;
  return 4;
}

static OrtStatus *create_state(OrtNodeComputeInfo *self, void *context, void **state) {
  (void)context;
  *state = self;
  return NULL;
}

static void release_state(OrtNodeComputeInfo *self, void *state) {
  (void)state;
  ORT(ReleaseMemoryInfo)(((RotatedProduct *)self)->memory);
  ((RotatedProduct *)self)->memory = NULL;
}

static OrtStatus *compute(OrtNodeComputeInfo *self, void *state, OrtKernelContext *context) {
  const RotatedProduct *product = state;
  Tensor tensors[BIAS + 1], input;
  OrtAllocator *allocator = NULL;
  (void)self;
  RETURN_IF_ERROR(get_input(context, product->input, &input));
  if (!product->matrix.rows) {
    float *output;
    RETURN_IF_ERROR(get_output(context, 0, input.sizes, input.rank, (void **)&output));
    product->kernels->hadamard(input.data, output,
                               count_elements(input.sizes, input.rank) / product->size,
                               product->size, product->scale);
    return NULL;
  }
  QuantizedMatrix matrix = product->matrix;
  for (size_t i = VALUES; i <= BIAS; i++)
    RETURN_IF_ERROR(get_input(context, product->inputs[i], &tensors[i]));
  matrix.values = tensors[VALUES].data;
  matrix.scales = tensors[SCALES].data;
  matrix.zero_points = tensors[ZERO_POINTS].data;
  RETURN_IF_ERROR(ORT(KernelContext_GetAllocator)(context, product->memory, &allocator));
  OrtStatus *status =
      multiply_input(product->kernels, allocator, &matrix, tensors[BIAS].data, &input,
                     product->size, product->scale, context);
  ORT(ReleaseAllocator)(allocator);
  return status;
}

// The index of a value among a node's inputs.
static OrtStatus *find_input(const Node *fused, const OrtValueInfo *value, size_t *index) {
  const char *wanted = NULL, *name = NULL;
  *index = NO_INPUT;
  if (!value) return NULL;
  RETURN_IF_ERROR(ORT(GetValueInfoName)(value, &wanted));
  for (size_t i = 0; i < fused->input_count; i++) {
    if (!fused->input_infos[i]) continue;
    RETURN_IF_ERROR(ORT(GetValueInfoName)(fused->input_infos[i], &name));
    if (!strcmp(name, wanted)) *index = i;
  }
  return *index == NO_INPUT ? fail("rotation: the fused node lacks its input %s", wanted) : NULL;
}

static OrtStatus *compile(const Node *matmul, const Node *fused, OrtNodeComputeInfo **out) {
  const OrtNode *nodes[MOST_FUSED];
  Node split, product;
  bool fits;
  RotatedProduct *made = calloc(1, sizeof *made);
  if (!made) return fail("edgetie: out of memory");
  *out = &made->runtime;
  made->runtime = (OrtNodeComputeInfo){API_VERSION, create_state, compute, release_state};
  made->kernels = select_kernels();
  made->size = hadamard_size(matmul, &made->scale);
  RETURN_IF_ERROR(ORT(CreateCpuMemoryInfo)(ORT_ARENA_ALLOCATOR, ORT_DEFAULT_MEMORY, &made->memory));
  const size_t count = find(matmul, nodes);
  if (!count) return fail("rotation: its nodes changed");
  RETURN_IF_ERROR(describe_node(nodes[0], &split, &fits));
  RETURN_IF_ERROR(find_input(fused, split.input_infos[0], &made->input));
  if (count < 4) return NULL;
  RETURN_IF_ERROR(describe_node(nodes[3], &product, &fits));
  made->matrix = describe_matrix(&product);
  for (size_t i = VALUES; i <= BIAS; i++)
    RETURN_IF_ERROR(find_input(fused, i < product.input_count ? product.input_infos[i] : NULL,
                               &made->inputs[i]));
  return NULL;
}

const Fusion rotation = {"", "MatMul", find, compile};
