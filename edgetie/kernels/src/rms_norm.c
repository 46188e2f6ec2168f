// Root mean square norms: RMSNormalization, SimplifiedLayerNormalization and, with the sum of two
// inputs in front, com.microsoft::SkipSimplifiedLayerNormalization.

#include "operator.h"

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

static OrtStatus *compute(const Kernel *kernel, const void *state, OrtKernelContext *context) {
  Tensor input, gain;
  float *output;
  RETURN_IF_ERROR(get_input(context, 0, &input));
  RETURN_IF_ERROR(get_input(context, 1, &gain));
  const size_t size = input.rank ? (size_t)input.sizes[input.rank - 1] : 0;
  if (gain.rank != 1 || (size_t)gain.sizes[0] != size)
    return fail("RMS norm: the scale has not one value for each of the last axis' %zu", size);
  RETURN_IF_ERROR(get_output(context, 0, input.sizes, input.rank, (void **)&output));
  kernel->kernels->rms_norm(input.data, NULL, 1, NULL, gain.data,
                            ((const State *)state)->epsilon, output, NULL,
                            count_elements(input.sizes, input.rank - 1), size);
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

// Inputs: input, skip, gamma, bias. Outputs: output, mean, inverse deviation, sum.
static bool supports_skip(const Node *node) {
  for (size_t i = 1; i < node->output_count && i < 3; i++)
    if (node->outputs[i]) return false;
  return node->inputs[2].type == ELEMENT_FLOAT;
}

static OrtStatus *compute_skip(const Kernel *kernel, const void *state,
                               OrtKernelContext *context) {
  Tensor input, skip, gain, bias;
  size_t outputs;
  float *output, *sum = NULL;
  RETURN_IF_ERROR(get_input(context, 0, &input));
  RETURN_IF_ERROR(get_input(context, 1, &skip));
  RETURN_IF_ERROR(get_input(context, 2, &gain));
  RETURN_IF_ERROR(get_input(context, 3, &bias));
  if (!fits(&input, &skip) || !has_size(&gain, last_size(&input)) ||
      (bias.data && !has_size(&bias, last_size(&input))))
    return fail("SkipSimplifiedLayerNormalization: skip, gamma or bias do not fit the input");
  RETURN_IF_ERROR(get_output(context, 0, input.sizes, input.rank, (void **)&output));
  RETURN_IF_ERROR(ORT(KernelContext_GetOutputCount)(context, &outputs));
  if (outputs > 3) RETURN_IF_ERROR(get_output(context, 3, input.sizes, input.rank, (void **)&sum));
  const size_t size = last_size(&input);
  kernel->kernels->rms_norm(input.data, skip.data, count_elements(skip.sizes, skip.rank - 1),
                            bias.data, gain.data, ((const State *)state)->epsilon, output, sum,
                            count_elements(input.sizes, input.rank - 1), size);
  return NULL;
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
