"""Smoothing: outlying channels of activations moved into the weights before both are rounded.

Inside MatMulNBits activations become int8 by blocks too, and one channel much larger than its
neighbours costs them their precision. Dividing channel j by ``s_j`` and multiplying row j of the
weight by it changes nothing in exact arithmetic (SmoothQuant, Xiao et al. 2022; with the scales
from activations alone, as in AWQ, Lin et al. 2023). The division goes where it costs nothing: into
the norm, or the projection, in front. A tied table is scaled too and stays one matrix: what is
looked up in it is divided again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.passes._base import (
    GraphPass,
    attribute_ints,
    initializer,
    producer,
    weight,
)
from edgetie.ties import MIN_ELEMENTS

_NORMS = {
    "RMSNormalization": (0, (1,)),
    "LayerNormalization": (0, (1, 2)),
    "SkipSimplifiedLayerNormalization": (0, (2,)),
    "SkipLayerNormalization": (0, (2, 3)),
}
"""Norms: which output is the normed one, and the inputs that scale it (weight, bias)."""

Array = np.ndarray[Any, Any]


def smoothable(model: ir.Model) -> dict[str, str]:
    """Activations whose channels can be scaled for nothing: name of the value, and what makes it.

    ``norm`` where a norm's weight takes the division, ``gate`` where the product of a gated
    feed-forward layer does (its linear half divides).
    """
    found = {}
    for node in model.graph:
        value = _product_input(node)
        if value is None or value.name in found or not _only_products(value):
            continue
        made = _above_selection(value).producer()
        if made is None:
            continue
        if made.op_type in _NORMS and _only_products(made.outputs[_NORMS[made.op_type][0]]):
            found[str(value.name)] = "norm"
        elif made.op_type == "Mul" and _linear_half(made) is not None:
            found[str(value.name)] = "gate"
    return found


class Smooth(GraphPass):
    """Divides activations and multiplies the weights that read them.

    Args:
        magnitudes: typical magnitude of each channel, by name of the activation.
        strength: exponent on the magnitudes: 0 changes nothing, 1 makes all channels alike.
    """

    name = "smooth"

    def __init__(self, magnitudes: Mapping[str, Array], strength: float) -> None:
        super().__init__()
        self.magnitudes = magnitudes
        self.strength = strength

    def rewrite(self, model: ir.Model) -> None:
        kinds = smoothable(model)
        for node in list(model.graph):
            value = _product_input(node)
            if value is None or str(value.name) not in self.magnitudes:
                continue
            kind = kinds.pop(str(value.name), None)
            if kind is None:
                continue
            scales = self._scales(self.magnitudes[str(value.name)])
            made = _above_selection(value).producer()
            assert made is not None
            if kind == "norm":
                for index in _NORMS[made.op_type][1]:
                    if index < len(made.inputs) and made.inputs[index] is not None:
                        _rescale_input(model.graph, made, index, 1 / scales, axis=0)
            else:
                half = _linear_half(made)
                assert half is not None
                product, start = half
                factors = np.ones(int(product.inputs[1].const_value.shape[1]), np.float32)  # type: ignore[union-attr]
                factors[start : start + len(scales)] = 1 / scales
                _rescale_input(model.graph, product, 1, factors, axis=1)
            for user in _users(value):
                self._multiply(model.graph, user, scales)
            self.changed += 1

    def _scales(self, magnitudes: Array) -> Array:
        floor = max(float(magnitudes.max()) * 1e-4, 1e-12)
        scales = np.maximum(magnitudes, floor) ** self.strength
        return (scales / np.exp(np.log(scales).mean())).astype(np.float32)

    def _multiply(self, graph: ir.Graph, user: ir.Node, scales: Array) -> None:
        """Scale what ``user`` multiplies its activations with, by input channel."""
        if weight(user.inputs[1]) is not None:
            _rescale_input(graph, user, 1, scales, axis=0)
            return
        table = user.inputs[0]
        assert table is not None
        for node, index in list(table.uses()):
            if node.op_type == "Gather" and index == 0:
                label = f"{table.name}.unsmooth"
                back = ir.node("Mul", [node.outputs[0], initializer(graph, label, 1 / scales)])
                _behind(node, back)
        _rescale_all(graph, table, scales, axis=1)


def _product_input(node: ir.Node) -> ir.Value | None:
    """The activations of a product with a constant matrix, or with a tied table on its left."""
    if node.op_type != "MatMul":
        return None
    left, right = weight(node.inputs[0]), weight(node.inputs[1])
    if right is not None and len(right.shape) == 2 and right.size >= MIN_ELEMENTS:
        return node.inputs[0]
    if left is not None and len(left.shape) == 2 and left.size >= MIN_ELEMENTS:
        turned = producer(node.inputs[1], "Transpose")
        flat = producer(turned.inputs[0], "Reshape") if turned else None
        if turned is not None and flat is not None and attribute_ints(turned, "perm") == [1, 0]:
            return flat.inputs[0]
    return None


def _above_selection(value: ir.Value) -> ir.Value:
    """What rows were selected from: a GatherND of tokens leaves channels as they are."""
    node = producer(value, "GatherND")
    return value if node is None or node.inputs[0] is None else node.inputs[0]


def _users(value: ir.Value) -> list[ir.Node]:
    """The products that read ``value``."""
    users = []
    for node, _ in value.uses():
        if node.op_type == "MatMul":
            users.append(node)
        elif node.op_type == "Reshape":
            turned = [n for n, _ in node.outputs[0].uses() if n.op_type == "Transpose"]
            users += [n for t in turned for n, _ in t.outputs[0].uses()]
        elif node.op_type == "GatherND":
            users += _users(node.outputs[0])
    return users


def _only_products(value: ir.Value) -> bool:
    """Whether nothing but products (and the selection of rows for them) reads ``value``."""
    if value.is_graph_output():
        return False
    for node, index in value.uses():
        if node.op_type == "MatMul" and index == 0 and weight(node.inputs[1]) is not None:
            if len(node.inputs[1].uses()) != 1:  # type: ignore[union-attr]
                return False
        elif node.op_type == "GatherND" and index == 0:
            if not _only_products(node.outputs[0]):
                return False
        elif node.op_type == "Shape":
            continue
        elif node.op_type == "Reshape" and index == 0:
            if not _only_table(node):
                return False
        else:
            return False
    return True


def _only_table(flat: ir.Node) -> bool:
    """Whether a Reshape feeds, transposed, a product with a table used for lookups besides."""
    for turned, _ in flat.outputs[0].uses():
        if turned.op_type != "Transpose":
            return False
        for product, index in turned.outputs[0].uses():
            table = product.inputs[0]
            if product.op_type != "MatMul" or index != 1 or weight(table) is None:
                return False
            others = [node for node, _ in table.uses() if node is not product]  # type: ignore[union-attr]
            if any(node.op_type != "Gather" for node in others):
                return False
    return True


def _linear_half(gated: ir.Node) -> tuple[ir.Node, int] | None:
    """The packed product, and the first column, whose half enters ``gated`` linearly."""
    for value in gated.inputs:
        split = producer(value, "Split")
        product = producer(split.inputs[0], "MatMul") if split else None
        if split is None or product is None or value is None or len(value.uses()) != 1:
            continue
        if weight(product.inputs[1]) is None or len(product.inputs[1].uses()) != 1:  # type: ignore[union-attr]
            continue
        position = list(split.outputs).index(value)
        sizes = split.inputs[1].const_value if len(split.inputs) > 1 and split.inputs[1] else None
        if sizes is not None:
            return product, int(sizes.numpy()[:position].sum())
    return None


def _rescale_input(
    graph: ir.Graph, node: ir.Node, index: int, factors: Array, *, axis: int
) -> None:
    """Give ``node`` its constant input times ``factors`` along ``axis``; other users keep it."""
    value = node.inputs[index]
    assert value is not None
    if len(value.uses()) == 1:
        _rescale_all(graph, value, factors, axis=axis)
        return
    copy = initializer(graph, f"{value.name}.{node.name}.smooth", _scaled(value, factors, axis))
    node.replace_input_with(index, copy)


def _rescale_all(graph: ir.Graph, value: ir.Value, factors: Array, *, axis: int) -> None:
    value.const_value = _scaled(value, factors, axis)


def _scaled(value: ir.Value, factors: Array, axis: int) -> ir.TensorProtocol:
    tensor = value.const_value
    assert tensor is not None
    shape = [1] * len(tensor.shape)
    shape[axis] = -1
    column = factors.astype(np.float32).reshape(shape)
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy() * column),
        dtype=tensor.dtype,
        shape=ir.Shape(tuple(tensor.shape)),
        name=str(value.name),
    )


def _behind(node: ir.Node, new: ir.Node) -> None:
    """Put ``new``, which reads ``node``, between it and everything else that reads it."""
    result = node.outputs[0]
    others = [(user, i) for user, i in result.uses() if user is not new]
    assert node.graph is not None
    node.graph.insert_after(node, [new])
    new.outputs[0].shape, new.outputs[0].type = result.shape, result.type
    for user, index in others:
        user.replace_input_with(index, new.outputs[0])


