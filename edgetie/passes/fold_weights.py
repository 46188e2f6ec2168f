"""Fold what all uses of a weight have in common into the weight."""

from collections.abc import Collection

import onnx_ir as ir

from edgetie.graph.constant_values import (
    ConstantValues,
    constant_tensor,
    constant_values,
    static_shape,
)
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import detach, initializer, replace
from edgetie.passes.base import WeightPass


class FoldWeights(WeightPass):
    """Replaces a float32 matrix that is computed from weights by one weight, if nothing else reads
    them: a scaled or normalized table, its low-rank update, a cast from 16 bits.

    The new weight is not larger than those it replaces, and has the name of the largest. It is
    computed when it is read. Vectors that are computed from a matrix, such as the sum of its rows,
    become constants.
    """

    def rewrite(self, model: ir.Model) -> None:
        weights = constant_values(model)
        for value in reversed([each for each in weights if each.producer() is not None]):
            is_replaced = not value.uses()  # by one that is computed from it
            if not is_replaced and _is_matrix(value):
                self._fold(model.graph, value, weights)
        for value in [each for each in weights if each.producer() is not None]:
            if _is_vector(value, weights) and any(
                u.outputs[0] not in weights for u, _ in value.uses()
            ):
                self._fold_vector(model.graph, value, weights[value])

    def _fold_vector(self, graph: ir.Graph, value: ir.Value, weights: Collection[ir.Value]) -> None:
        tensor = constant_tensor(value, weights)
        if tensor is not None:
            replace(value, initializer(graph, f"{value.name}.folded", tensor))
            self.changed += 1

    def _fold(self, graph: ir.Graph, value: ir.Value, weights: ConstantValues) -> None:
        cone = _cone(value, weights)
        replaced = [each for each in weights[value] if _is_read_by(each, cone)]
        interior = {result for node in cone for result in node.outputs} - {value}
        if (
            not all(_is_read_by(each, cone) for each in interior)
            or any(weight.name in self.fixed for weight in replaced)
            or not _have_the_size_of(value, replaced)
        ):
            return
        tensor = constant_tensor(value, weights[value])
        if tensor is None:
            return
        for node in cone:
            detach(node)
        for weight in replaced:
            graph.initializers.pop(str(weight.name))
        name = str(max(replaced, key=_size).name)
        replace(value, initializer(graph, name, tensor))
        self.changed += 1


def _cone(value: ir.Value, weights: ConstantValues) -> dict[ir.Node, None]:
    """Return the nodes that compute a constant value from weights."""
    cone: dict[ir.Node, None] = {}
    queue = [value.producer()]
    while queue:
        node = queue.pop()
        if node is not None and node not in cone:
            cone[node] = None
            queue += [each.producer() for each in node.inputs if each is not None and weights[each]]
    return cone


def _is_read_by(value: ir.Value, nodes: Collection[ir.Node]) -> bool:
    """Whether only these nodes read a value."""
    return not value.is_graph_output() and all(user in nodes for user, _ in value.uses())


def _is_matrix(value: ir.Value) -> bool:
    shape = static_shape(value)
    return (
        value.dtype == ir.DataType.FLOAT
        and not value.is_graph_output()
        and shape is not None
        and len(shape) == 2
        and shape[0] * shape[1] >= MIN_ELEMENTS
    )


def _is_vector(value: ir.Value, weights: ConstantValues) -> bool:
    """Whether a value has at most one longer axis, and is computed from a matrix of floats."""
    shape = static_shape(value)
    return (
        shape is not None
        and sum(size > 1 for size in shape) < 2
        and not value.is_graph_output()
        and any(_is_matrix(weight) for weight in weights[value])
    )


def _have_the_size_of(value: ir.Value, weights: Collection[ir.Value]) -> bool:
    """Whether weights have together at least as many elements as a value."""
    shape = static_shape(value) or (0, 0)
    return sum(map(_size, weights)) >= shape[0] * shape[1]


def _size(weight: ir.Value) -> int:
    return weight.const_value.size if weight.const_value is not None else 0
