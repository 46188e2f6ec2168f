// com.microsoft::GroupQueryAttention: attention over a cache that the node extends.
//
// Left to ONNX Runtime: attention_bias, outputs of scores, caches of the window's size or of 4
// bits, norms of queries and keys, right-padded chunks (query_seqlens).

#include <math.h>
#include <string.h>

#include "operator.h"

enum {
  QUERY,
  KEY,
  VALUE,
  PAST_KEY,
  PAST_VALUE,
  LAST_POSITIONS,  // named seqlens_k
  TOTAL_LENGTH,
  COSINES,
  SINES,
  POSITIONS,
  BIAS,
  SINKS,
  KEY_SCALE,
  VALUE_SCALE,
  QUERY_NORM,
  KEY_NORM,
  INPUTS
};
enum { OUTPUT, PRESENT_KEY, PRESENT_VALUE, SCORES };

// The size of a head; 0 if the query's last axis does not have the size of whole heads.
static int64_t head_size_of(int64_t hidden_size, int64_t heads, int64_t kv_heads, bool is_packed) {
  const int64_t all = is_packed ? heads + 2 * kv_heads : heads;
  return hidden_size > 0 && hidden_size % all == 0 ? hidden_size / all : 0;
}

static bool has_cache_type(const Node *node, const char *type) {
  return node_is(node, "k_quant_type", "NONE", type) && node_is(node, "v_quant_type", "NONE", type);
}

static bool supports_cache(const Node *node) {
  const Value *key = &node->inputs[PAST_KEY], *value = &node->inputs[PAST_VALUE];
  const Value *scales[2] = {&node->inputs[KEY_SCALE], &node->inputs[VALUE_SCALE]};
  const int64_t bits = node_int(node, "kv_cache_bit_width", 0);
  if (key->present != value->present) return false;
  if (has_cache_type(node, "NONE"))
    return bits == 0 && (!key->present || (key->type == ELEMENT_FLOAT && value->type == key->type));
  const bool is_by_channel = has_cache_type(node, "PER_CHANNEL");
  if (!is_by_channel && !has_cache_type(node, "PER_TENSOR")) return false;
  if (bits != 8 || key->type != ELEMENT_INT8 || value->type != ELEMENT_INT8) return false;
  for (int i = 0; i < 2; i++) {
    int64_t count = 1;
    if (!scales[i]->present || scales[i]->type != ELEMENT_FLOAT || !scales[i]->has_shape)
      return false;
    for (size_t axis = 0; axis < scales[i]->rank; axis++) {
      if (scales[i]->sizes[axis] < 1) return false;
      count *= scales[i]->sizes[axis];
    }
    if ((count > 1) != is_by_channel) return false;
  }
  return true;
}

static bool supports(const Node *node) {
  const int64_t heads = node_int(node, "num_heads", 0), causal = node_int(node, "causal", 1);
  const int64_t kv_heads = node_int(node, "kv_num_heads", 0);
  const int64_t window = node_int(node, "local_window_size", -1);
  const int64_t rotary = node_int(node, "do_rotary", 0);
  const Value *query = &node->inputs[QUERY], *inputs = node->inputs;
  if (heads < 1 || kv_heads < 1 || heads % kv_heads) return false;
  if (query->type != ELEMENT_FLOAT || !query->has_shape || query->rank != 3) return false;
  if (inputs[KEY].present != inputs[VALUE].present) return false;
  const int64_t size = head_size_of(query->sizes[2], heads, kv_heads, !inputs[KEY].present);
  if (size < 8 || size % 8 || size > MOST_HEAD_SIZE) return false;
  if (causal != 0 && causal != 1) return false;
  if (window != -1 && (window < 1 || !causal)) return false;
  if (rotary != 0 && (rotary != 1 || !inputs[COSINES].present)) return false;
  if (inputs[COSINES].present != inputs[SINES].present) return false;
  if (!(node_float(node, "softcap", 0) >= 0) || !isfinite(node_float(node, "scale", 0)))
    return false;
  if (inputs[BIAS].present || inputs[QUERY_NORM].present || inputs[KEY_NORM].present) return false;
  if (node_int(node, "sliding_window_cache", 0) || node_int(node, "qk_output", 0)) return false;
  if (!node->outputs[OUTPUT]) return false;
  if (!node->outputs[PRESENT_KEY] || !node->outputs[PRESENT_VALUE] || node->outputs[SCORES])
    return false;
  return supports_cache(node);
}

typedef struct {
  size_t heads, kv_heads, window;
  float scale, softcap;
  bool is_causal, is_rotary, is_interleaved, is_smooth, is_int8;
} State;

static bool match(const Node *node, Match *match) {
  const int64_t window = node_int(node, "local_window_size", -1);
  if (!supports(node)) return false;
  *(State *)match->state = (State){.heads = (size_t)node_int(node, "num_heads", 1),
                                   .kv_heads = (size_t)node_int(node, "kv_num_heads", 1),
                                   .window = window > 0 ? (size_t)window : 0,
                                   .scale = node_float(node, "scale", 0),
                                   .softcap = node_float(node, "softcap", 0),
                                   .is_causal = node_int(node, "causal", 1),
                                   .is_rotary = node_int(node, "do_rotary", 0),
                                   .is_interleaved = node_int(node, "rotary_interleaved", 0) == 1,
                                   .is_smooth = node_int(node, "smooth_softmax", 0) == 1,
                                   .is_int8 = node_int(node, "kv_cache_bit_width", 0)};
  return true;
}

static bool has_sizes(const Tensor *tensor, size_t rank, const int64_t *sizes) {
  return tensor->rank == rank && !memcmp(tensor->sizes, sizes, rank * sizeof *sizes);
}

// Read the queries, keys and values.
static OrtStatus *read_tokens(const State *state, const Tensor *const *inputs, Attention *attention) {
  const Tensor *query = inputs[QUERY], *key = inputs[KEY], *value = inputs[VALUE];
  const bool is_packed = !key->present;
  const int64_t heads = (int64_t)state->heads, kv_heads = (int64_t)state->kv_heads;
  if (query->rank != 3) return fail("GroupQueryAttention: query has %zu axes, not 3", query->rank);
  const int64_t size = head_size_of(query->sizes[2], heads, kv_heads, is_packed);
  if (size < 8 || size % 8 || size > MOST_HEAD_SIZE)
    return fail("GroupQueryAttention: the size of a head must be a multiple of 8 up to %d; query "
                "has %lld elements a token", MOST_HEAD_SIZE, (long long)query->sizes[2]);
  attention->batch = (size_t)query->sizes[0];
  attention->tokens = (size_t)query->sizes[1];
  attention->head_size = (size_t)size;
  attention->query = query->data;
  attention->query_stride = attention->key_stride = (size_t)query->sizes[2];
  attention->new_tokens = attention->tokens;
  if (is_packed && query->data) {
    attention->key = attention->query + heads * size;
    attention->value = attention->key + kv_heads * size;
  }
  if (is_packed) return NULL;
  const int64_t sizes[3] = {query->sizes[0], key->rank == 3 ? key->sizes[1] : -1, kv_heads * size};
  if (!has_sizes(key, 3, sizes) || !has_sizes(value, 3, sizes) ||
      (sizes[1] != query->sizes[1] && (sizes[1] || !inputs[PAST_KEY]->present)))
    return fail("GroupQueryAttention: key and value do not fit the query");
  attention->new_tokens = (size_t)sizes[1];
  attention->key = key->data;
  attention->value = value->data;
  attention->key_stride = (size_t)sizes[2];
  return NULL;
}

// Read the lengths and the past; `present_sizes` are those of the present keys and values.
static OrtStatus *read_past(const State *state, const Tensor *const *inputs, Attention *attention,
                            int64_t present_sizes[4]) {
  const Tensor *key = inputs[PAST_KEY], *value = inputs[PAST_VALUE];
  const Tensor *last = inputs[LAST_POSITIONS], *total = inputs[TOTAL_LENGTH];
  const int64_t batch = (int64_t)attention->batch, tokens = (int64_t)attention->tokens;
  const int64_t past = key->rank == 4 ? key->sizes[2] : 0;
  const int64_t sizes[4] = {batch, (int64_t)state->kv_heads, past, (int64_t)attention->head_size};
  if (key->present != value->present ||
      (key->present && (!has_sizes(key, 4, sizes) || !has_sizes(value, 4, sizes))))
    return fail("GroupQueryAttention: past_key and past_value do not fit the query");
  bool fits = last->rank > 0 && (int64_t)count_elements(last->sizes, last->rank) == batch;
  for (size_t i = 0; i < last->rank; i++)
    fits = fits && (last->sizes[i] == 1 || last->sizes[i] == batch);
  if (!fits) return fail("GroupQueryAttention: seqlens_k has not one value for each batch item");
  if (count_elements(total->sizes, total->rank) != 1 || *(const int32_t *)total->data < 1)
    return fail("GroupQueryAttention: total_sequence_length is not one positive number");
  const int64_t length = *(const int32_t *)total->data;
  if (tokens != length && tokens != 1 && (tokens < 1 || batch != 1))
    return fail("GroupQueryAttention: several tokens after others need a batch of 1");
  if (!attention->new_tokens && length > past)
    return fail("GroupQueryAttention: total_sequence_length %lld exceeds the past's %lld",
                (long long)length, (long long)past);
  memcpy(present_sizes, sizes, sizeof sizes);
  present_sizes[2] = length > past ? length : past;
  attention->is_first = tokens == length;
  attention->past_capacity = (size_t)past;
  attention->capacity = (size_t)present_sizes[2];
  attention->past_keys = key->data;
  attention->past_values = value->data;
  attention->last_positions = last->data;
  for (int64_t b = 0; b < batch; b++) {
    const int64_t position = attention->last_positions[b];
    const int64_t kept = position + 1 - tokens;
    if (position < 0 || position >= present_sizes[2] ||
        (!attention->is_first && (kept < 0 || (key->present && attention->new_tokens && kept > past))))
      return fail("GroupQueryAttention: seqlens_k[%lld] = %lld does not fit %lld tokens and a past "
                  "of %lld", (long long)b, (long long)position, (long long)tokens, (long long)past);
  }
  return NULL;
}

static OrtStatus *read_positions(const Tensor *positions, int64_t limit, Attention *attention) {
  const int64_t *ids = positions->data;
  if (positions->rank < 2 || positions->sizes[0] != (int64_t)attention->batch ||
      positions->sizes[1] < (int64_t)attention->tokens)
    return fail("GroupQueryAttention: position_ids do not fit the query");
  const size_t count = attention->is_first ? 1 : attention->batch * attention->tokens;
  const int64_t last = limit - (attention->is_first ? (int64_t)attention->tokens : 1);
  for (size_t i = 0; attention->batch && i < count; i++)
    if (ids[i] < 0 || ids[i] > last)
      return fail("GroupQueryAttention: position %lld is outside of cos_cache's %lld rows",
                  (long long)ids[i], (long long)limit);
  if (!attention->is_first)
    attention->positions = ids;
  else if (attention->batch)
    attention->first_rotation = (size_t)ids[0];
  return NULL;
}

static OrtStatus *read_rotation(const State *state, const Tensor *const *inputs, Attention *attention) {
  const Tensor *cosines = inputs[COSINES], *sines = inputs[SINES];
  const int64_t size = (int64_t)attention->head_size;
  const int64_t length = *(const int32_t *)inputs[TOTAL_LENGTH]->data;
  if (!cosines->present) return NULL;
  if (size % 16) return fail("GroupQueryAttention: rotated heads need a multiple of 16 elements");
  if (cosines->rank != 2 || sines->rank != 2 || cosines->sizes[1] != sines->sizes[1] ||
      cosines->sizes[1] > size / 2 || cosines->sizes[1] % 8)
    return fail("GroupQueryAttention: cos_cache and sin_cache do not fit heads of %lld elements",
                (long long)size);
  const int64_t limit = cosines->sizes[0] < sines->sizes[0] ? cosines->sizes[0] : sines->sizes[0];
  for (size_t b = 0; b < attention->batch; b++)
    if (attention->last_positions[b] >= limit || length > limit)
      return fail("GroupQueryAttention: cos_cache and sin_cache have %lld rows, fewer than tokens",
                  (long long)limit);
  if (!state->is_rotary) return NULL;
  attention->rotary_size = (size_t)cosines->sizes[1] * 2;
  attention->cosines = cosines->data;
  attention->sines = sines->data;
  attention->is_interleaved = state->is_interleaved;
  return inputs[POSITIONS]->present ? read_positions(inputs[POSITIONS], limit, attention) : NULL;
}

static OrtStatus *read_scales(const State *state, const Tensor *const *inputs, Attention *attention) {
  const size_t channels = state->kv_heads * attention->head_size;
  const size_t count = count_elements(inputs[KEY_SCALE]->sizes, inputs[KEY_SCALE]->rank);
  const Tensor *sinks = inputs[SINKS];
  if (sinks->present && count_elements(sinks->sizes, sinks->rank) != state->heads)
    return fail("GroupQueryAttention: head_sink has not one value for each head");
  attention->has_sink = state->is_smooth || sinks->present;
  attention->sinks = sinks->data;
  if (!state->is_int8) return NULL;
  if ((count != 1 && count != channels) ||
      count_elements(inputs[VALUE_SCALE]->sizes, inputs[VALUE_SCALE]->rank) != count)
    return fail("GroupQueryAttention: k_scale and v_scale have not one value, or one for each of "
                "%zu channels", channels);
  attention->key_scale = inputs[KEY_SCALE]->data;
  attention->value_scale = inputs[VALUE_SCALE]->data;
  attention->is_scaled_by_channel = count > 1;
  return NULL;
}

// Read a run's inputs.
static OrtStatus *read_run(const State *state, const Run *run, Attention *attention,
                           int64_t present_sizes[4]) {
  *attention = (Attention){.heads = state->heads,
                           .kv_heads = state->kv_heads,
                           .window = state->window,
                           .softcap = state->softcap,
                           .is_causal = state->is_causal};
  RETURN_IF_ERROR(read_tokens(state, run->inputs, attention));
  RETURN_IF_ERROR(read_past(state, run->inputs, attention, present_sizes));
  RETURN_IF_ERROR(read_rotation(state, run->inputs, attention));
  RETURN_IF_ERROR(read_scales(state, run->inputs, attention));
  attention->scale = state->scale != 0 ? state->scale : 1 / sqrtf((float)attention->head_size);
  return NULL;
}

static OrtStatus *plan(const void *saved, Run *run) {
  const State *state = saved;
  Attention attention;
  int64_t present_sizes[4];
  RETURN_IF_ERROR(read_run(state, run, &attention, present_sizes));
  const int64_t sizes[3] = {(int64_t)attention.batch, (int64_t)attention.tokens,
                            (int64_t)(attention.heads * attention.head_size)};
  set_sizes(run->outputs[OUTPUT], sizes, 3);
  for (int i = PRESENT_KEY; i <= PRESENT_VALUE; i++) {
    set_sizes(run->outputs[i], present_sizes, 4);
    if (state->is_int8) run->outputs[i]->type = ELEMENT_INT8;
  }
  if (attention.batch) run->scratch_bytes = run->kernels->attend_bytes(&attention);
  return NULL;
}

static void compute(const void *state, const Run *run) {
  Attention attention;
  int64_t present_sizes[4];
  if (!succeeds(read_run(state, run, &attention, present_sizes)) || !attention.batch) return;
  attention.output = run->outputs[OUTPUT]->data;
  attention.present_keys = run->outputs[PRESENT_KEY]->data;
  attention.present_values = run->outputs[PRESENT_VALUE]->data;
  run->kernels->attend(&attention, run->scratch, run->parallel);
}

const Operator group_query_attention = {
    "com.microsoft", "GroupQueryAttention", 1, 1, match, plan, compute};
