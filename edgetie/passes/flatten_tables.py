"""Store embedding tables of more axes as matrices."""

import math

import onnx_ir as ir

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import replace_initializer, transformed
from edgetie.graph.matching import operator, rank
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import WeightPass


class FlattenTables(WeightPass):
    """Turns weights ``(rows, …)`` of more than two axes that are looked up by rows into matrices.

    A Reshape restores the axes of the rows, and those of the table for other users.
    """

    def rewrite(self, model: ir.Model) -> None:
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if (
                tensor is not None
                and tensor.dtype.is_floating_point()
                and len(tensor.shape) > 2
                and tensor.size >= MIN_ELEMENTS
                and value.name not in self.fixed
                and not value.is_graph_output()
                and any(_looks_up(*use) for use in value.uses())
            ):
                self._flatten(model.graph, value, tensor)

    def _flatten(self, graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        count, *row = tensor.shape.numpy()
        shape = count, math.prod(row)
        flat = transformed(tensor, lambda array: array.reshape(shape), shape)
        table = replace_initializer(graph, value, flat)
        for node, index in list(value.uses()):
            nodes = Nodes(graph)
            if not _looks_up(node, index):
                whole = nodes.integers(f"{table.name}.shape", [count, *row])
                nodes.insert_for_use(node, index, nodes("Reshape", table, whole))
                continue
            ids = node.inputs[1]
            assert ids is not None
            rows = nodes("Gather", table, ids)
            nodes.nodes[-1].name = node.name
            target = nodes.integers(f"{table.name}.rows.{rank(ids)}", [0] * rank(ids) + row)
            nodes.insert_instead_of(node, nodes("Reshape", rows, target))
        self.changed += 1


def _looks_up(node: ir.Node, index: int) -> bool:
    """Whether a node looks up rows by ids of known rank."""
    if operator(node) != "Gather" or index != 0 or node.inputs[1] is None:
        return False
    axis = node.attributes.get_int("axis", 0) % max(1, rank(node.inputs[0] or node.inputs[1]))
    return axis == 0 and node.inputs[1].shape is not None
