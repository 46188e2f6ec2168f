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

bool is_read_only_by(const OrtValueInfo *value, const OrtNode *const *nodes, size_t count) {
  const OrtNode *consumers[MOST_NODES];
  int64_t inputs[MOST_NODES];
  size_t number = 0;
  bool is_output = true;
  if (!succeeds(ORT(ValueInfo_IsGraphOutput)(value, &is_output)) || is_output) return false;
  if (!succeeds(ORT(ValueInfo_GetValueNumConsumers)(value, &number)) || number > MOST_NODES)
    return false;
  if (!succeeds(ORT(ValueInfo_GetValueConsumers)(value, consumers, inputs, number))) return false;
  for (size_t i = 0; i < number; i++) {
    bool is_inside = false;
    for (size_t j = 0; j < count; j++) is_inside |= nodes[j] == consumers[i];
    if (!is_inside) return false;
  }
  return true;
}

bool is_same(const OrtValueInfo *a, const OrtValueInfo *b) {
  const char *first = NULL, *second = NULL;
  return succeeds(ORT(GetValueInfoName)(a, &first)) &&
         succeeds(ORT(GetValueInfoName)(b, &second)) && !strcmp(first, second);
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
  value->has_shape = value->rank > 0 && value->rank <= MOST_AXES;
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
  *node = (Node){.node = source};
  RETURN_IF_ERROR(ORT(Node_GetNumInputs)(source, &node->input_count));
  RETURN_IF_ERROR(ORT(Node_GetNumOutputs)(source, &node->output_count));
  *fits = node->input_count <= MOST_INPUTS && node->output_count <= MOST_OUTPUTS;
  if (!*fits) return NULL;
  RETURN_IF_ERROR(ORT(Node_GetInputs)(source, node->input_infos, node->input_count));
  RETURN_IF_ERROR(ORT(Node_GetOutputs)(source, node->outputs, node->output_count));
  for (size_t i = 0; i < node->input_count; i++)
    RETURN_IF_ERROR(describe_value(node->input_infos[i], &node->inputs[i]));
  for (size_t i = 0; i < node->output_count; i++)
    if (!is_used(node->outputs[i])) node->outputs[i] = NULL;
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

OrtStatus *read_tensor(const OrtValue *value, Tensor *tensor) {
  const int64_t *sizes;
  *tensor = (Tensor){.present = true};
  RETURN_IF_ERROR(ORT(GetTensorElementTypeAndShapeDataReference)(value, &tensor->type, &sizes,
                                                                 &tensor->rank));
  if (tensor->rank > MOST_AXES) return fail("edgetie: a tensor has %zu axes", tensor->rank);
  if (tensor->rank) memcpy(tensor->sizes, sizes, tensor->rank * sizeof *sizes);
  return ORT(GetTensorMutableData)((OrtValue *)value, &tensor->data);
}

OrtStatus *node_constant(const Node *node, size_t index, Tensor *tensor) {
  const OrtValue *value = NULL;
  *tensor = (Tensor){0};
  if (index >= node->input_count || !node->inputs[index].constant) return NULL;
  RETURN_IF_ERROR(ORT(ValueInfo_GetInitializerValue)(node->input_infos[index], &value));
  return value ? read_tensor(value, tensor) : NULL;
}

size_t count_elements(const int64_t *sizes, size_t rank) {
  size_t count = 1;
  for (size_t i = 0; i < rank; i++) count *= (size_t)sizes[i];
  return count;
}

void set_sizes(Tensor *output, const int64_t *sizes, size_t rank) {
  *output = (Tensor){.rank = rank, .type = ELEMENT_FLOAT, .present = true};
  memcpy(output->sizes, sizes, rank * sizeof *sizes);
}

typedef struct {
  RowTask *task;
  const void *state;
  size_t rows, chunk;
} Rows;

static void run_rows(void *state, size_t index) {
  const Rows *rows = state;
  const size_t first = index * rows->chunk, rest = rows->rows - first;
  rows->task(rows->state, first, rest < rows->chunk ? rest : rows->chunk);
}

void for_each_row(const Parallel *parallel, RowTask *task, const void *state, size_t rows,
                  size_t size) {
  const size_t chunk = 1 + 16384 / (size + 1);
  Rows all = {task, state, rows, chunk};
  if (rows <= chunk)
    task(state, 0, rows);
  else
    parallel->run(parallel->context, run_rows, &all, (rows + chunk - 1) / chunk);
}

// Whether the provider computes a node, of which `match` then tells more.
static bool find_match(const OrtNode *source, Match *match) {
  Node node;
  int version = 0;
  bool fits;
  for (const Operator *const *each = operators; *each; each++) {
    if (!is_operator(source, (*each)->domain, (*each)->name)) continue;
    if (!succeeds(ORT(Node_GetSinceVersion)(source, &version))) continue;
    if (version < (*each)->first_version || version > (*each)->last_version) continue;
    if (!succeeds(describe_node(source, &node, &fits)) || !fits) continue;
    *match = (Match){.operator_ = *each, .nodes = {source}, .node_count = 1};
    for (size_t i = 0; i < node.input_count; i++)
      if (node.inputs[i].present) match->inputs[i] = node.input_infos[i];
    memcpy(match->outputs, node.outputs, sizeof node.outputs);
    if ((*each)->match(&node, match)) return true;
  }
  return false;
}

// Whether a match has a node that an earlier one has.
static bool overlaps(const Match *match, const Match *earlier, size_t count) {
  for (size_t i = 0; i < count; i++)
    for (size_t j = 0; j < earlier[i].node_count; j++)
      for (size_t k = 0; k < match->node_count; k++)
        if (match->nodes[k] == earlier[i].nodes[j]) return true;
  return false;
}

size_t find_matches(const OrtNode *const *nodes, size_t count, Match *matches) {
  size_t found = 0;
  for (size_t i = 0; i < count; i++)
    if (find_match(nodes[i], &matches[found]) && !overlaps(&matches[found], matches, found))
      found++;
  return found;
}
