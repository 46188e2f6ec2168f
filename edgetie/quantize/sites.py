"""Activations that products with constant matrices read, and nothing else does.

What happens to such a value can be undone in the weights behind it: channels can be scaled
(:mod:`edgetie.quantize.smooth`) or mixed (:mod:`edgetie.quantize.rotate`), and in exact arithmetic
the model stays the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.passes._base import attribute_ints, producer, weight
from edgetie.ties import MIN_ELEMENTS

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Site:
    """An activation ``(…, channels)`` and the products that read it.

    Attributes:
        value: the activation.
        products: MatMul nodes with a constant matrix on the right, or a tied table on the left.
        channels: size of its last axis.
    """

    value: ir.Value
    products: tuple[ir.Node, ...]
    channels: int

    @property
    def name(self) -> str:
        return str(self.value.name)

    @property
    def tables(self) -> list[ir.Value]:
        """Tables on the left of a product: looked up in elsewhere."""
        found = {id(v): v for v in (n.inputs[0] for n in self.products) if weight(v) is not None}
        return [value for value in found.values() if value is not None]


def find_sites(model: ir.Model) -> dict[str, Site]:
    """All sites of a graph by the name of their activation, in graph order."""
    found: dict[str, Site] = {}
    for node in model.graph:
        value = product_input(node)
        if value is None or str(value.name) in found or not _only_products(value):
            continue
        matrix = weight(node.inputs[1])
        axis = 0 if matrix is not None else 1
        tensor = matrix if matrix is not None else weight(node.inputs[0])
        assert tensor is not None
        products = tuple(_products(value))
        found[str(value.name)] = Site(value, products, int(tensor.shape[axis]))
    return found


def product_input(node: ir.Node) -> ir.Value | None:
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


def _products(value: ir.Value) -> list[ir.Node]:
    """The products that read ``value``."""
    nodes = []
    for node, _ in value.uses():
        if node.op_type == "MatMul":
            nodes.append(node)
        elif node.op_type == "Reshape":
            turned = [n for n, _ in node.outputs[0].uses() if n.op_type == "Transpose"]
            nodes += [n for t in turned for n, _ in t.outputs[0].uses()]
    return nodes


def _only_products(value: ir.Value) -> bool:
    """Whether nothing but products (and Shape) reads ``value``."""
    if value.is_graph_output():
        return False
    for node, index in value.uses():
        if node.op_type == "MatMul" and index == 0 and weight(node.inputs[1]) is not None:
            if len(node.inputs[1].uses()) != 1:  # type: ignore[union-attr]
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
    """Whether a Reshape feeds, transposed, one product with a table used for lookups besides."""
    for turned, _ in flat.outputs[0].uses():
        if turned.op_type != "Transpose":
            return False
        for product, index in turned.outputs[0].uses():
            table = product.inputs[0]
            if product.op_type != "MatMul" or index != 1 or weight(table) is None:
                return False
            others = [node for node, _ in table.uses() if node is not product]  # type: ignore[union-attr]
            if any(node.op_type != "Gather" or _axis(node) != 0 for node in others):
                return False
    return bool(flat.outputs[0].uses()) and not flat.outputs[0].is_graph_output()


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 0


def transform(value: ir.Value, change: Callable[[Array], Array]) -> None:
    """Change an initializer's array when it is read; its shape and type stay."""
    value.const_value = changed(value, change)


def changed(value: ir.Value, change: Callable[[Array], Array]) -> ir.LazyTensor:
    """The initializer's array after ``change``, made when it is read."""
    tensor = value.const_value
    assert tensor is not None
    return ir.LazyTensor(
        lambda: ir.tensor(change(tensor.numpy())),
        dtype=tensor.dtype,
        shape=ir.Shape(tuple(int(d) for d in tensor.shape)),
        name=str(value.name),
    )


def behind(node: ir.Node, *new: ir.Node) -> None:
    """Put ``new``, the first of which reads ``node``, between it and everything else that does."""
    result = node.outputs[0]
    users = [(user, i) for user, i in result.uses() if user is not new[0]]
    assert node.graph is not None
    node.graph.insert_after(node, new)
    new[-1].outputs[0].shape, new[-1].outputs[0].type = result.shape, result.type
    for user, index in users:
        user.replace_input_with(index, new[-1].outputs[0])
