// Nodes that the provider computes are grouped by level: the number of times that a path from the
// graph's inputs leaves the provider's nodes. No path between two nodes of one level leaves them.

#include "partition.h"

#include <stdlib.h>
#include <string.h>

enum { NO_MATCH = UINT32_MAX };

typedef struct {
  const OrtNode **nodes;  // in the order of dependence
  Match *matches;
  uint32_t *match_of;  // of nodes
  uint32_t *levels;    // of nodes
  size_t *places;      // of nodes, by identifier
  size_t count, place_count, match_count;
} Partition;

static size_t node_id(const OrtNode *node) {
  size_t id = 0;
  return succeeds(ORT(Node_GetId)(node, &id)) ? id : 0;
}

// The level that a value brings to a node that reads it.
static uint32_t level_of_value(const Partition *partition, const OrtValueInfo *value,
                               bool is_computed_here) {
  const OrtNode *source = value ? producer(value) : NULL;
  const size_t id = source ? node_id(source) : 0;
  if (!source || id >= partition->place_count) return 0;
  const size_t place = partition->places[id];
  if (partition->nodes[place] != source) return 0;  // of a graph around this one
  const bool leaves = partition->match_of[place] != NO_MATCH && !is_computed_here;
  return partition->levels[place] + leaves;
}

static OrtStatus *level_of_inputs(const Partition *partition, const OrtNode *node, bool is_implicit,
                                  uint32_t *level) {
  size_t count;
  RETURN_IF_ERROR(is_implicit ? ORT(Node_GetNumImplicitInputs)(node, &count)
                              : ORT(Node_GetNumInputs)(node, &count));
  const OrtValueInfo **inputs = calloc(count + 1, sizeof *inputs);
  if (!inputs) return fail("edgetie: out of memory");
  OrtStatus *status = is_implicit ? ORT(Node_GetImplicitInputs)(node, inputs, count)
                                  : ORT(Node_GetInputs)(node, inputs, count);
  for (size_t i = 0; i < count && !status; i++) {
    const uint32_t each = level_of_value(partition, inputs[i], false);
    if (each > *level) *level = each;
  }
  free(inputs);
  return status;
}

// Give the nodes of a match one level: that of the last one, before which all inputs are computed.
static void set_level(const Partition *partition, const Match *match, uint32_t level) {
  for (size_t i = 0; i < match->node_count; i++)
    partition->levels[partition->places[node_id(match->nodes[i])]] = level;
}

static OrtStatus *find_levels(Partition *partition) {
  for (size_t i = 0; i < partition->count; i++) {
    const OrtNode *node = partition->nodes[i];
    const uint32_t number = partition->match_of[i];
    uint32_t *level = &partition->levels[i];
    if (number == NO_MATCH) {
      RETURN_IF_ERROR(level_of_inputs(partition, node, false, level));
      RETURN_IF_ERROR(level_of_inputs(partition, node, true, level));
      continue;
    }
    for (size_t j = 0; j < MOST_INPUTS; j++) {
      const OrtValueInfo *value = partition->matches[number].inputs[j];
      const uint32_t each = level_of_value(partition, value, true);
      if (each > *level) *level = each;
    }
    set_level(partition, &partition->matches[number], *level);
  }
  return NULL;
}

static OrtStatus *add_groups(const Partition *partition, OrtEpGraphSupportInfo *support) {
  const OrtNode **group = calloc(partition->count + 1, sizeof *group);
  OrtStatus *status = group ? NULL : fail("edgetie: out of memory");
  for (uint32_t level = 0, higher = 1; higher && !status; level++) {
    size_t count = 0;
    higher = 0;
    for (size_t i = 0; i < partition->count; i++) {
      if (partition->match_of[i] == NO_MATCH) continue;
      if (partition->levels[i] == level) group[count++] = partition->nodes[i];
      higher |= partition->levels[i] > level;
    }
    if (count) status = ORT_EP(EpGraphSupportInfo_AddNodesToFuse)(support, group, count, NULL);
  }
  free(group);
  return status;
}

static OrtStatus *number_nodes(Partition *partition) {
  for (size_t i = 0; i < partition->count; i++) {
    const size_t id = node_id(partition->nodes[i]);
    if (id >= partition->place_count) partition->place_count = id + 1;
  }
  partition->places = calloc(partition->place_count + 1, sizeof *partition->places);
  if (!partition->places) return fail("edgetie: out of memory");
  for (size_t i = 0; i < partition->count; i++) {
    partition->places[node_id(partition->nodes[i])] = i;
    partition->match_of[i] = NO_MATCH;
  }
  for (uint32_t i = 0; i < partition->match_count; i++)
    for (size_t j = 0; j < partition->matches[i].node_count; j++)
      partition->match_of[partition->places[node_id(partition->matches[i].nodes[j])]] = i;
  return NULL;
}

OrtStatus *add_programs(const OrtGraph *graph, OrtEpGraphSupportInfo *support) {
  Partition partition = {0};
  RETURN_IF_ERROR(ORT(Graph_GetNumNodes)(graph, &partition.count));
  const size_t count = partition.count + 1;
  partition.nodes = calloc(count, sizeof *partition.nodes);
  partition.matches = calloc(count, sizeof *partition.matches);
  partition.match_of = calloc(count, sizeof *partition.match_of);
  partition.levels = calloc(count, sizeof *partition.levels);
  OrtStatus *status = NULL;
  if (!partition.nodes || !partition.matches || !partition.match_of || !partition.levels)
    status = fail("edgetie: out of memory");
  if (!status) status = ORT(Graph_GetNodes)(graph, partition.nodes, partition.count);
  if (!status) {
    partition.match_count = find_matches(partition.nodes, partition.count, partition.matches);
    status = number_nodes(&partition);
  }
  if (!status) status = find_levels(&partition);
  if (!status) status = add_groups(&partition, support);
  free(partition.nodes);
  free(partition.matches);
  free(partition.match_of);
  free(partition.levels);
  free(partition.places);
  return status;
}
