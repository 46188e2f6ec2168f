"""Write other operators that look up rows of a weight as a Gather."""

import numpy as np
import onnx_ir as ir

from edgetie.graph.constant_values import (
    ConstantValues,
    constant_tensor,
    constant_values,
    static_shape,
)
from edgetie.graph.matching import last_dimension, operator, producer, rank, scalar
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass

_FEW = 8  # elements
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


class LookUpsToGather(GraphPass):
    """Rewrites ``MatMul(OneHot(ids), W)`` and ``GatherND(W, ids)`` into a Gather of the rows of W,
    or of what is computed from W. One-hot vectors may also be ``Equal(ids, 0 … n - 1)``.

    One-hot vectors of ids that W does not have give zeros, as before.
    """

    def rewrite(self, model: ir.Model) -> None:
        weights = constant_values(model)
        for node in list(model.graph.all_nodes()):
            index = {"MatMul": 1, "GatherND": 0}.get(operator(node))
            matrix = node.inputs[index] if index is not None else None
            shape = static_shape(matrix) if matrix is not None else None
            if matrix is None or not weights.get(matrix) or node.outputs[0] in weights:
                continue
            if shape is None or len(shape) != 2:
                continue
            if index == 0:
                self._rewrite_gather(model.graph, node, matrix)
            else:
                self._rewrite_product(model.graph, node, matrix, weights)

    def _rewrite_gather(self, graph: ir.Graph, node: ir.Node, matrix: ir.Value) -> None:
        nodes, indices = Nodes(graph), node.inputs[1]
        batch_axes = node.attributes.get_int("batch_dims", 0)
        if indices is None or last_dimension(indices) != 1 or batch_axes:
            return
        rows = nodes("Gather", matrix, nodes.along("Squeeze", indices, -1))
        nodes.nodes[-1].name = node.name
        nodes.insert_instead_of(node, rows)
        self.changed += 1

    def _rewrite_product(
        self, graph: ir.Graph, node: ir.Node, matrix: ir.Value, weights: ConstantValues
    ) -> None:
        nodes, vectors = Nodes(graph), node.inputs[0]
        rows, _ = static_shape(matrix) or (0, 0)
        assert vectors is not None
        while (cast := producer(vectors, "Cast")) is not None and cast.inputs[0] is not None:
            vectors = cast.inputs[0]
        ids = _one_hot_ids(nodes, vectors, rows, weights) or _equal_ids(
            nodes, vectors, rows, weights
        )
        if ids is None:
            nodes.discard()
            return
        kind = ids.dtype or ir.DataType.INT64
        zero, end = nodes.number(0, kind), nodes.number(rows, kind)
        lowest = zero if producer(vectors, "OneHot") is None else nodes.number(-rows, kind)
        is_row = nodes("And", nodes("Not", nodes("Less", ids, lowest)), nodes("Less", ids, end))
        embeddings = nodes("Gather", matrix, nodes("Where", is_row, ids, zero))
        nodes.nodes[-1].name = node.name
        nothing = nodes.number(0, matrix.dtype or ir.DataType.FLOAT)
        result = nodes("Where", nodes.along("Unsqueeze", is_row, -1), embeddings, nothing)
        nodes.insert_instead_of(node, result)
        self.changed += 1


def _one_hot_ids(
    nodes: Nodes, vectors: ir.Value, rows: int, weights: ConstantValues
) -> ir.Value | None:
    """Return the ids of ``OneHot(ids, rows, (0, 1))`` along the last axis."""
    one_hot = producer(vectors, "OneHot")
    if one_hot is None or None in one_hot.inputs[:3]:
        return None
    ids, depth, values = one_hot.inputs[:3]
    assert ids is not None
    axis = one_hot.attributes.get_int("axis", -1)
    is_last = axis == -1 or axis == rank(ids) != 0
    if not is_last or _numbers(values, weights) != [0, 1] or _numbers(depth, weights) != [rows]:
        return None
    return _as_integers(nodes, ids)


def _equal_ids(
    nodes: Nodes, vectors: ir.Value, rows: int, weights: ConstantValues
) -> ir.Value | None:
    """Return the ids of ``Equal(Unsqueeze(ids, -1), (0, …, rows - 1))``."""
    choose = producer(vectors, "Where")
    if choose is not None:
        if (scalar(choose.inputs[1]), scalar(choose.inputs[2])) != (1, 0):
            return None
        vectors = choose.inputs[0] or vectors
    equal = producer(vectors, "Equal")
    if equal is None:
        return None
    for ids, numbers in (equal.inputs, equal.inputs[::-1]):
        if ids is None or numbers is None or not rank(ids) or ids.shape is None:
            continue
        tensor = constant_tensor(numbers, weights[numbers]) if numbers in weights else None
        if tensor is None or tensor.size != rows or tensor.shape.numpy()[-1] != rows:
            continue
        if ids.shape[-1] == 1 and np.array_equal(tensor.numpy().reshape(-1), np.arange(rows)):
            return _as_integers(nodes, nodes.along("Squeeze", ids, -1))
    return None


def _numbers(value: ir.Value | None, weights: ConstantValues) -> list[float] | None:
    """Return the elements of a small constant, which may be computed."""
    if value is None or value not in weights:
        return None
    tensor = constant_tensor(value, weights[value])
    if tensor is None or tensor.size > _FEW:
        return None
    return [float(number) for number in tensor.numpy().reshape(-1)]


def _as_integers(nodes: Nodes, ids: ir.Value) -> ir.Value:
    return ids if ids.dtype in _INTEGERS else nodes.cast(ids, ir.DataType.INT64)
