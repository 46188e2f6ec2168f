"""Projections of one input as one product, and packed Q/K/V for attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer, insert
from edgetie.graph.matching import only_user, producer, weight
from edgetie.passes.base import GraphPass
from edgetie.ties.groups import FORM_CHANGES


@dataclass(frozen=True)
class _Projection:
    """``MatMul(x, weight)`` and perhaps ``Add(bias)``."""

    product: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    result: ir.Value
    width: int


class PackProjections(GraphPass):
    """Merges MatMuls over the same input into one MatMul and a Split.

    Three products for Q, K and V and two for gate and up become one each: fewer, larger kernels.
    Attention whose Q, K and V are that Split's outputs takes the product whole.
    """

    name = "pack"

    def rewrite(self, model: ir.Model) -> None:
        by_input: dict[ir.Value, list[_Projection]] = {}
        for node in model.graph:
            projection = _projection(node)
            x = node.inputs[0]
            if projection is not None and x is not None and not _is_weight(x):
                by_input.setdefault(x, []).append(projection)
        for siblings in by_input.values():
            if len(siblings) > 1 and len({p.bias is None for p in siblings}) == 1:
                self._merge(model.graph, siblings)
        for node in list(model.graph):
            if node.op_type == "GroupQueryAttention":
                self._pack_attention(node)

    def _merge(self, graph: ir.Graph, siblings: list[_Projection]) -> None:
        name = "+".join(str(p.weight.name) for p in siblings)
        widths = [p.width for p in siblings]
        first = siblings[0]
        x = first.product.inputs[0]
        assert x is not None
        packed = initializer(graph, name, _joined([p.weight for p in siblings], 1, name))
        product = ir.node("MatMul", [x, packed], name=first.product.name)
        nodes = [product]
        _like(product.outputs[0], first.result, sum(widths))
        if first.bias is not None:
            biases = [p.bias for p in siblings if p.bias is not None]
            label = "+".join(str(b.name) for b in biases)
            bias = initializer(graph, label, _joined(biases, 0, label))
            nodes.append(ir.node("Add", [product.outputs[0], bias]))
            _like(nodes[-1].outputs[0], first.result, sum(widths))
        sizes = initializer(
            graph, f"sizes.{'.'.join(map(str, widths))}", np.array(widths, np.int64)
        )
        split = ir.node(
            "Split", [nodes[-1].outputs[0], sizes], {"axis": -1}, num_outputs=len(siblings)
        )
        insert(first.product, *nodes, split)
        for projection, output in zip(siblings, split.outputs, strict=True):
            _like(output, projection.result, projection.width)
            ir.convenience.replace_all_uses_with(projection.result, output)
        self.changed += 1

    def _pack_attention(self, node: ir.Node) -> None:
        q, k, v = node.inputs[:3]
        split = producer(q, "Split")
        if split is None or q is None or k is None or v is None:
            return
        if list(split.outputs) != [q, k, v] or any(only_user(x) is not node for x in (q, k, v)):
            return
        node.replace_input_with(0, split.inputs[0])
        node.replace_input_with(1, None)
        node.replace_input_with(2, None)
        self.changed += 1


def _is_weight(value: ir.Value) -> bool:
    """Whether it is an initializer, perhaps in another form: its uses are counted one by one."""
    while (made := value.producer()) is not None and made.op_type in FORM_CHANGES:
        if made.inputs[0] is None:
            return False
        value = made.inputs[0]
    return value.is_initializer()


def _projection(node: ir.Node) -> _Projection | None:
    if node.op_type != "MatMul" or weight(node.inputs[1]) is None:
        return None
    w = node.inputs[1]
    assert w is not None
    assert w.const_value is not None
    if len(w.const_value.shape) != 2 or len(w.uses()) != 1:
        return None
    width = w.const_value.shape.numpy()[1]
    output = node.outputs[0]
    if output.is_graph_output():
        return None
    add = only_user(output, "Add")
    if add is not None:
        bias = add.inputs[1] if add.inputs[0] is output else add.inputs[0]
        tensor = weight(bias)
        if tensor is not None and tuple(tensor.shape) == (width,):
            return _Projection(node, w, bias, add.outputs[0], width)
    return _Projection(node, w, None, output, width)


def _joined(values: list[ir.Value], axis: int, name: str) -> ir.LazyTensor:
    """The weights side by side, put together when the file is written."""
    tensors = [v.const_value for v in values if v.const_value is not None]
    shape = list(tensors[0].shape.numpy())
    shape[axis] = sum(tensor.shape.numpy()[axis] for tensor in tensors)
    return ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis=axis)),
        dtype=tensors[0].dtype,
        shape=ir.Shape(shape),
        name=name,
    )


def _like(value: ir.Value, other: ir.Value, width: int) -> None:
    value.type = other.type
    if other.shape is not None:
        value.shape = ir.Shape([*list(other.shape)[:-1], width])
