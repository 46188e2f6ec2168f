"""Pack the projections of one input into one MatMul, and Q, K and V for attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer, insert
from edgetie.graph.matching import only_user, other_operand, producer, weight
from edgetie.passes.base import GraphPass
from edgetie.sources.quantized.tensor import QuantizedTensor, find_quantized
from edgetie.ties.groups import JOINT, VIEW_OPERATORS, is_named


@dataclass(frozen=True)
class _Projection:
    """``MatMul(x, weight)``, followed by ``Add(bias)`` if it has one."""

    matmul: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    result: ir.Value
    width: int


class PackProjections(GraphPass):
    """Merges MatMuls over the same input into one MatMul and a Split.

    The three MatMuls of Q, K and V and the two of gate and up become one each: fewer, larger
    kernels. Attention that reads Q, K and V from that Split reads the packed result instead.

    Weights that another graph reads too stay separate, so that both read the same bytes. Weights
    that a checkpoint has quantized are only merged if one quantized weight can hold them.
    """

    def __init__(
        self,
        shared: Sequence[tuple[str, ...]] = (),
        quantized: Mapping[str, QuantizedTensor] | None = None,
    ) -> None:
        """Set up the pass.

        Args:
            shared: names of the parameters that another graph reads too, group by group.
            quantized: weights that the checkpoint has quantized, by the names of parameters.
        """
        super().__init__()
        self._shared = tuple(chain.from_iterable(shared))
        self._quantized = quantized or {}

    def rewrite(self, model: ir.Model) -> None:
        by_input: dict[tuple[ir.Value, Any], list[_Projection]] = {}
        for node in model.graph:
            projection = self._match(node)
            x = node.inputs[0] if node.inputs else None
            if projection is not None and x is not None and not _is_weight(x):
                form = self._form(str(projection.weight.name))
                by_input.setdefault((x, form), []).append(projection)
        for (x, _), projections in by_input.items():
            if len(projections) > 1 and len({p.bias is None for p in projections}) == 1:
                self._pack(model.graph, x, projections)
        for node in list(model.graph):
            if node.op_type == "GroupQueryAttention":
                self._pack_attention(node)

    def _match(self, node: ir.Node) -> _Projection | None:
        projection = _match_projection(node)
        is_shared = projection and is_named(str(projection.weight.name), self._shared)
        return None if is_shared else projection

    def _form(self, name: str) -> tuple[int, int, bool] | None:
        """What quantized weights that are merged have in common; ``None`` for float weights."""
        tensor = find_quantized(name, self._quantized)
        return None if tensor is None else tensor.form

    def _pack(self, graph: ir.Graph, x: ir.Value, projections: list[_Projection]) -> None:
        first, widths = projections[0], [p.width for p in projections]
        tape = ir.tape.Tape()
        matrix = _concatenate(graph, [p.weight for p in projections], axis=1)
        output = tape.op("MatMul", [x, matrix], name=first.matmul.name)
        _copy_type(output, first.result, sum(widths))
        biases = [p.bias for p in projections if p.bias is not None]
        if biases:
            output = tape.op("Add", [output, _concatenate(graph, biases, axis=0)])
            _copy_type(output, first.result, sum(widths))
        label = f"sizes.{'.'.join(map(str, widths))}"
        sizes = initializer(graph, label, np.array(widths, np.int64))
        outputs = tape.op_multi_out(
            "Split", [output, sizes], {"axis": -1}, num_outputs=len(projections)
        )
        insert(first.matmul, *tape.nodes)
        for projection, part in zip(projections, outputs, strict=True):
            _copy_type(part, projection.result, projection.width)
            ir.convenience.replace_all_uses_with(projection.result, part)
        self.changed += 1

    def _pack_attention(self, node: ir.Node) -> None:
        q, k, v = node.inputs[:3]
        split = producer(q, "Split")
        if split is None or q is None or k is None or v is None:
            return
        if list(split.outputs) != [q, k, v] or any(only_user(x) is not node for x in (q, k, v)):
            return
        for index, value in enumerate((split.inputs[0], None, None)):
            node.replace_input_with(index, value)
        self.changed += 1


def _is_weight(value: ir.Value) -> bool:
    """Whether it is a view of an initializer, whose uses are counted one by one."""
    while (view := producer(value, *VIEW_OPERATORS)) is not None:
        if view.inputs[0] is None:
            return False
        value = view.inputs[0]
    return value.is_initializer()


def _match_projection(node: ir.Node) -> _Projection | None:
    if node.op_type != "MatMul":
        return None
    matrix, output = node.inputs[1], node.outputs[0]
    tensor = weight(matrix)
    if matrix is None or tensor is None or len(tensor.shape) != 2 or len(matrix.uses()) != 1:
        return None
    if output.is_graph_output():
        return None
    width = tensor.shape.numpy()[1]
    add = only_user(output, "Add")
    if add is not None:
        bias = other_operand(add, output)
        vector = weight(bias)
        if vector is not None and tuple(vector.shape) == (width,):
            return _Projection(node, matrix, bias, add.outputs[0], width)
    return _Projection(node, matrix, None, output, width)


def _concatenate(graph: ir.Graph, values: list[ir.Value], axis: int) -> ir.Value:
    """Add the concatenation of initializers, which is computed when the file is written."""
    tensors = [value.const_value for value in values if value.const_value is not None]
    name = JOINT.join(str(value.name) for value in values)
    shape = list(tensors[0].shape.numpy())
    shape[axis] = sum(tensor.shape.numpy()[axis] for tensor in tensors)
    lazy = ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis=axis)),
        dtype=tensors[0].dtype,
        shape=ir.Shape(shape),
        name=name,
    )
    return initializer(graph, name, lazy)


def _copy_type(value: ir.Value, other: ir.Value, width: int) -> None:
    """Give ``value`` the type of ``other``, and its shape but for the last axis."""
    value.type = other.type
    if other.shape is not None:
        value.shape = ir.Shape([*list(other.shape)[:-1], width])
