// Root mean square norms: RMSNormalization, SimplifiedLayerNormalization and, with the sum of two
// inputs in front, com.microsoft::SkipSimplifiedLayerNormalization.

#include "fusions.h"

static const char *const float_types[] = {"T", NULL};

static bool is_last_axis(const Node *node) {
  const int64_t axis = node_int(node, "axis", -1);
  const Value *input = &node->inputs[0], *gain = &node->inputs[1];
  if (!input->present || !input->has_shape || gain->type != ELEMENT_FLOAT) return false;
  if (gain->rank != 1 || node_int(node, "stash_type", 1) != 1) return false;
  if (gain->sizes[0] < 2) return false;  // unknown, or one value for all
  return axis == -1 || axis == (int64_t)input->rank - 1;
}

static bool supports(const Node *node) { return is_last_axis(node) && node->output_count == 1; }

typedef struct {
  float epsilon;
} State;

static OrtStatus *create(void *out, const OrtKernelInfo *info) {
  ((State *)out)->epsilon = info_float(info, "epsilon", 1e-5f);
  return NULL;
}

static size_t last_size(const Tensor *tensor) { return (size_t)tensor->sizes[tensor->rank - 1]; }

static bool has_size(const Tensor *tensor, size_t size) {
  return count_elements(tensor->sizes, tensor->rank) == size;
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

OrtStatus *read_norm(const OrtKernelContext *context, const size_t inputs[4], Norm *norm) {
  RETURN_IF_ERROR(get_input(context, inputs[0], &norm->input));
  RETURN_IF_ERROR(get_input(context, inputs[1], &norm->skip));
  RETURN_IF_ERROR(get_input(context, inputs[2], &norm->gain));
  RETURN_IF_ERROR(get_input(context, inputs[3], &norm->bias));
  const Tensor *input = &norm->input;
  if (input->rank < 1 || !has_size(&norm->gain, last_size(input)))
    return fail("RMS norm: the scale has not one value for each of the last axis'");
  if (norm->skip.data && !fits(input, &norm->skip))
    return fail("SkipSimplifiedLayerNormalization: skip does not fit the input");
  if (norm->bias.data && !has_size(&norm->bias, last_size(input)))
    return fail("SkipSimplifiedLayerNormalization: bias does not fit the input");
  norm->size = last_size(input);
  norm->tokens = count_elements(input->sizes, input->rank - 1);
  norm->skip_tokens =
      norm->skip.data ? count_elements(norm->skip.sizes, norm->skip.rank - 1) : 1;
  return NULL;
}

static OrtStatus *compute_norm(const Kernel *kernel, float epsilon, const size_t inputs[4],
                               OrtKernelContext *context) {
  Norm norm;
  size_t outputs;
  float *output, *sum = NULL;
  RETURN_IF_ERROR(read_norm(context, inputs, &norm));
  const Tensor *input = &norm.input;
  RETURN_IF_ERROR(get_output(context, 0, input->sizes, input->rank, (void **)&output));
  RETURN_IF_ERROR(ORT(KernelContext_GetOutputCount)(context, &outputs));
  if (outputs > 3)
    RETURN_IF_ERROR(get_output(context, 3, input->sizes, input->rank, (void **)&sum));
  kernel->kernels->rms_norm(input->data, norm.skip.data, norm.skip_tokens, norm.bias.data,
                            norm.gain.data, epsilon, output, sum, norm.tokens, norm.size);
  return NULL;
}

static const size_t norm_inputs[4] = {0, NO_INPUT, 1, NO_INPUT}, skip_inputs[4] = {0, 1, 2, 3};

static OrtStatus *compute(const Kernel *kernel, const void *state, OrtKernelContext *context) {
  return compute_norm(kernel, ((const State *)state)->epsilon, norm_inputs, context);
}

static OrtStatus *compute_skip(const Kernel *kernel, const void *state,
                               OrtKernelContext *context) {
  return compute_norm(kernel, ((const State *)state)->epsilon, skip_inputs, context);
}

// Inputs: input, skip, gamma, bias. Outputs: output, mean, inverse deviation, sum.
static bool supports_skip(const Node *node) {
  for (size_t i = 1; i < node->output_count && i < 3; i++)
    if (node->outputs[i]) return false;
  return node->inputs[2].type == ELEMENT_FLOAT;
}

bool is_norm(const Node *node, size_t inputs[4]) {
  const bool skips = is_operator(node->node, "com.microsoft", "SkipSimplifiedLayerNormalization");
  if (!skips && !is_operator(node->node, "", "RMSNormalization") &&
      !is_operator(node->node, "", "SimplifiedLayerNormalization"))
    return false;
  for (size_t i = 0; i < 4; i++) inputs[i] = skips ? skip_inputs[i] : norm_inputs[i];
  if (node->inputs[0].type != ELEMENT_FLOAT) return false;
  return skips ? supports_skip(node) : supports(node);
}

#define NORM(identifier, domain_, name_, first, last, supports_, compute_)              \
  const Operator identifier = {.domain = domain_,                                       \
                               .name = name_,                                           \
                               .first_version = first,                                  \
                               .last_version = last,                                    \
                               .float_types = float_types,                              \
                               .supports = supports_,                                   \
                               .state_size = sizeof(State),                             \
                               .create = create,                                        \
                               .compute = compute_}

NORM(rms_normalization, "", "RMSNormalization", 23, 23, supports, compute);
NORM(simplified_norm, "", "SimplifiedLayerNormalization", 1, 1, supports, compute);
NORM(skip_simplified_norm, "com.microsoft", "SkipSimplifiedLayerNormalization", 1, 1,
     supports_skip, compute_skip);
