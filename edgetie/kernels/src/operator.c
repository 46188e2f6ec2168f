// Helpers that read nodes and tensors through ONNX Runtime's interface.

#include "operator.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

OrtTable ort_api, ort_ep_api;

OrtStatus *fail(const char *format, ...) {
  char message[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return ORT(CreateStatus)(ORT_INVALID_ARGUMENT, message);
}

bool succeeds(OrtStatus *status) {
  if (status) ORT(ReleaseStatus)(status);
  return !status;
}

bool is_operator(const OrtNode *node, const char *domain, const char *name) {
  const char *its_name = "", *its_domain = "";
  return succeeds(ORT(Node_GetOperatorType)(node, &its_name)) &&
         succeeds(ORT(Node_GetDomain)(node, &its_domain)) && !strcmp(its_name, name) &&
         (!strcmp(its_domain, domain) || (!*domain && !strcmp(its_domain, "ai.onnx")));
}

const OrtNode *only_consumer(const OrtValueInfo *value) {
  size_t count = 0;
  int64_t input;
  bool is_output = true;
  const OrtNode *node = NULL;
  if (!succeeds(ORT(ValueInfo_IsGraphOutput)(value, &is_output)) || is_output) return NULL;
  if (!succeeds(ORT(ValueInfo_GetValueNumConsumers)(value, &count)) || count != 1) return NULL;
  return succeeds(ORT(ValueInfo_GetValueConsumers)(value, &node, &input, 1)) ? node : NULL;
}

const OrtNode *producer(const OrtValueInfo *value) {
  const OrtNode *node = NULL;
  size_t output;
  return succeeds(ORT(ValueInfo_GetValueProducer)(value, &node, &output)) ? node : NULL;
}

static OrtStatus *describe_value(const OrtValueInfo *info, Value *value) {
  const OrtTypeInfo *type = NULL;
  const OrtTensorTypeAndShapeInfo *tensor = NULL;
  *value = (Value){0};
  if (!info) return NULL;
  value->present = true;
  RETURN_IF_ERROR(ORT(ValueInfo_IsConstantInitializer)(info, &value->constant));
  RETURN_IF_ERROR(ORT(GetValueInfoTypeInfo)(info, &type));
  if (type) RETURN_IF_ERROR(ORT(CastTypeInfoToTensorInfo)(type, &tensor));
  if (!tensor) return NULL;
  RETURN_IF_ERROR(ORT(GetTensorElementType)(tensor, &value->type));
  RETURN_IF_ERROR(ORT(GetDimensionsCount)(tensor, &value->rank));
  value->has_shape = value->rank > 0 && value->rank <= 8;
  return value->has_shape ? ORT(GetDimensions)(tensor, value->sizes, value->rank) : NULL;
}

// Whether anything reads an output, which may have a name all the same.
static bool is_used(const OrtValueInfo *output) {
  size_t consumers = 0;
  bool is_output = true;
  if (!output) return false;
  if (!succeeds(ORT(ValueInfo_GetValueNumConsumers)(output, &consumers)) || consumers) return true;
  return !succeeds(ORT(ValueInfo_IsGraphOutput)(output, &is_output)) || is_output;
}

OrtStatus *describe_node(const OrtNode *source, Node *node, bool *fits) {
  const OrtValueInfo *outputs[MOST_INPUTS];
  *node = (Node){.node = source};
  RETURN_IF_ERROR(ORT(Node_GetNumInputs)(source, &node->input_count));
  RETURN_IF_ERROR(ORT(Node_GetNumOutputs)(source, &node->output_count));
  *fits = node->input_count <= MOST_INPUTS && node->output_count <= MOST_INPUTS;
  if (!*fits) return NULL;
  RETURN_IF_ERROR(ORT(Node_GetInputs)(source, node->input_infos, node->input_count));
  RETURN_IF_ERROR(ORT(Node_GetOutputs)(source, outputs, node->output_count));
  for (size_t i = 0; i < node->input_count; i++)
    RETURN_IF_ERROR(describe_value(node->input_infos[i], &node->inputs[i]));
  for (size_t i = 0; i < node->output_count; i++) node->outputs[i] = is_used(outputs[i]);
  return NULL;
}

static bool read_attribute(const Node *node, const char *name, int type, void *value,
                           size_t size) {
  const OrtOpAttr *attribute = NULL;
  size_t read = 0;
  return succeeds(ORT(Node_GetAttributeByName)(node->node, name, &attribute)) && attribute &&
         succeeds(ORT(ReadOpAttr)(attribute, type, value, size, &read));
}

int64_t node_int(const Node *node, const char *name, int64_t otherwise) {
  int64_t value;
  return read_attribute(node, name, ORT_ATTRIBUTE_INT, &value, sizeof value) ? value : otherwise;
}

float node_float(const Node *node, const char *name, float otherwise) {
  float value;
  return read_attribute(node, name, ORT_ATTRIBUTE_FLOAT, &value, sizeof value) ? value : otherwise;
}

bool node_is(const Node *node, const char *name, const char *otherwise, const char *value) {
  char text[64] = {0};
  if (!node_has(node, name)) return !strcmp(otherwise, value);
  return read_attribute(node, name, ORT_ATTRIBUTE_STRING, text, sizeof text - 1) &&
         !strcmp(text, value);
}

bool node_has(const Node *node, const char *name) {
  const OrtOpAttr *attribute = NULL;
  return succeeds(ORT(Node_GetAttributeByName)(node->node, name, &attribute)) && attribute;
}

int64_t info_int(const OrtKernelInfo *info, const char *name, int64_t otherwise) {
  int64_t value;
  return succeeds(ORT(KernelInfoGetAttribute_int64)(info, name, &value)) ? value : otherwise;
}

float info_float(const OrtKernelInfo *info, const char *name, float otherwise) {
  float value;
  return succeeds(ORT(KernelInfoGetAttribute_float)(info, name, &value)) ? value : otherwise;
}

static OrtStatus *read_tensor(const OrtValue *value, Tensor *tensor) {
  RETURN_IF_ERROR(ORT(GetTensorElementTypeAndShapeDataReference)(value, &tensor->type,
                                                                 &tensor->sizes, &tensor->rank));
  return ORT(GetTensorData)(value, &tensor->data);
}

OrtStatus *node_constant(const Node *node, size_t index, Tensor *tensor) {
  const OrtValue *value = NULL;
  *tensor = (Tensor){0};
  if (index >= node->input_count || !node->inputs[index].constant) return NULL;
  RETURN_IF_ERROR(ORT(ValueInfo_GetInitializerValue)(node->input_infos[index], &value));
  return value ? read_tensor(value, tensor) : NULL;
}

OrtStatus *constant_input(const OrtKernelInfo *info, size_t index, Tensor *tensor) {
  int is_constant = 0;
  const OrtValue *value = NULL;
  *tensor = (Tensor){0};
  RETURN_IF_ERROR(ORT(KernelInfoGetConstantInput_tensor)(info, index, &is_constant, &value));
  return is_constant && value ? read_tensor(value, tensor) : NULL;
}

OrtStatus *get_input(const OrtKernelContext *context, size_t index, Tensor *tensor) {
  const OrtValue *value = NULL;
  size_t count;
  *tensor = (Tensor){0};
  RETURN_IF_ERROR(ORT(KernelContext_GetInputCount)(context, &count));
  if (index >= count) return NULL;
  RETURN_IF_ERROR(ORT(KernelContext_GetInput)(context, index, &value));
  return value ? read_tensor(value, tensor) : NULL;
}

OrtStatus *get_output(OrtKernelContext *context, size_t index, const int64_t *sizes, size_t rank,
                      void **data) {
  OrtValue *value = NULL;
  RETURN_IF_ERROR(ORT(KernelContext_GetOutput)(context, index, sizes, rank, &value));
  *data = NULL;
  return value ? ORT(GetTensorMutableData)(value, data) : NULL;
}

size_t count_elements(const int64_t *sizes, size_t rank) {
  size_t count = 1;
  for (size_t i = 0; i < rank; i++) count *= (size_t)sizes[i];
  return count;
}

static void run_on_session(void *context, void (*task)(void *, size_t), void *state,
                           size_t count) {
  OrtStatus *status = ORT(KernelContext_ParallelFor)(context, task, count, 0, state);
  if (status) {  // it has run nothing
    ORT(ReleaseStatus)(status);
    for (size_t i = 0; i < count; i++) task(state, i);
  }
}

Parallel session_threads(OrtKernelContext *context) {
  return (Parallel){context, run_on_session};
}

void *get_scratch(OrtAllocator *allocator, size_t bytes, void **to_release) {
  char *memory = allocator->Alloc(allocator, bytes + 64);
  *to_release = memory;
  return memory ? memory + (64 - (uintptr_t)memory % 64) % 64 : NULL;
}

OrtStatus *return_self(OrtNodeComputeInfo *self, void *context, void **state) {
  (void)context;
  *state = self;
  return NULL;
}

void keep_self(OrtNodeComputeInfo *self, void *state) { (void)self, (void)state; }
