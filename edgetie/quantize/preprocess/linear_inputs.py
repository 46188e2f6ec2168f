"""Activations that products with constant matrices read, and nothing else does.

What happens to such a value can be undone in the weights behind it: channels can be scaled
(:mod:`smooth`) or mixed (:mod:`rotate`), and in exact arithmetic
the model stays the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import replace
from edgetie.graph.matching import attribute_ints, only_user, producer, weight
from edgetie.graph.operators import operator

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LinearOp:
    """A node, its constant matrix, and whether that is stored ``(N, K)``, as a table is."""

    node: ir.Node
    matrix: ir.Value
    table: bool

    @property
    def rows(self) -> Array:
        """The matrix with one row an output channel."""
        tensor = weight(self.matrix)
        assert tensor is not None
        return tensor.numpy() if self.table else tensor.numpy().T

    @property
    def columns(self) -> int:
        """Channels of what it reads."""
        tensor = weight(self.matrix)
        assert tensor is not None
        return int(tensor.shape.numpy()[1 if self.table else 0])


@dataclass(frozen=True)
class LinearInput:
    """An activation ``(…, channels)`` and the products that read it."""

    value: ir.Value
    products: tuple[LinearOp, ...]

    @property
    def channels(self) -> int:
        return self.products[0].columns

    @property
    def tables(self) -> list[ir.Value]:
        """Matrices that are looked up in as well."""
        return [product.matrix for product in self.products if product.table]


def find_linear_inputs(model: ir.Model) -> dict[str, LinearInput]:
    """All sites of a graph by the name of their activation, in graph order."""
    inputs = [_input(node) for node in model.graph if operator(node) == "MatMul"]
    found: dict[str, LinearInput] = {}
    for value in inputs:
        if value is not None and str(value.name) not in found:
            products = _products(value)
            if products and not value.is_graph_output():
                found[str(value.name)] = LinearInput(value, tuple(products))
    return found


def _input(node: ir.Node) -> ir.Value | None:
    """The activations of a MatMul with a constant matrix: on the right, or a table on the left."""
    if not _is_matrix(node.inputs[0]):
        return node.inputs[0]
    turned = producer(node.inputs[1], "Transpose")
    flat = producer(turned.inputs[0], "Reshape") if turned else None
    return flat.inputs[0] if flat is not None else None


def _products(value: ir.Value) -> list[LinearOp]:
    """The products that read ``value``; none if anything else but Shape reads it too."""
    products: list[LinearOp] = []
    for node, index in value.uses():
        if operator(node) == "Shape":
            continue
        found = [_product(node)] if operator(node) == "MatMul" and index == 0 else _turned(node)
        if not found or None in found:
            return []
        products += [product for product in found if product is not None]
    return products


def _product(node: ir.Node) -> LinearOp | None:
    """``MatMul(x, W)``, W used here alone, or ``MatMul(x, Transpose(W))``."""
    right = node.inputs[1]
    if right is not None and _is_matrix(right) and only_user(right) is node:
        return LinearOp(node, right, False)
    turned = producer(right, "Transpose")
    table = turned.inputs[0] if turned is not None else None
    if turned is None or table is None or not _is_matrix(table) or not _only_here(table, turned):
        return None
    return LinearOp(node, table, True) if only_user(turned.outputs[0]) is node else None


def _turned(flat: ir.Node) -> list[LinearOp | None]:
    """The products ``MatMul(W, Transpose(Reshape(x)))`` behind a Reshape."""
    products: list[LinearOp | None] = []
    for turned, _ in flat.outputs[0].uses() if operator(flat) == "Reshape" else []:
        for node, index in turned.outputs[0].uses():
            table = node.inputs[0]
            good = operator(turned) == "Transpose" and attribute_ints(turned, "perm") == [1, 0]
            good = good and operator(node) == "MatMul" and index == 1 and table is not None
            if not good or table is None or not _is_matrix(table) or not _only_here(table, node):
                return [None]
            products.append(LinearOp(node, table, True))
    return products


def _is_matrix(value: ir.Value | None) -> bool:
    tensor = weight(value)
    return tensor is not None and len(tensor.shape) == 2 and tensor.size >= MIN_ELEMENTS


def _only_here(table: ir.Value, node: ir.Node) -> bool:
    """Whether a table is used by ``node`` and for lookups of its rows only."""
    return not table.is_graph_output() and all(
        user is node or (operator(user) == "Gather" and index == 0 and _axis(user) == 0)
        for user, index in table.uses()
    )


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
        shape=ir.Shape(tensor.shape.numpy()),
        name=str(value.name),
    )


def behind(node: ir.Node, *new: ir.Node) -> None:
    """Put ``new``, the first of which reads ``node``, between it and everything else that does,
    a graph's outputs among it.
    """
    result = node.outputs[0]
    own = [(user, index) for user, index in result.uses() if user in new]
    for index, made in enumerate(new):  # a branch's names must be unlike those of outer values
        made.outputs[0].name = f"{result.name}.{made.op_type}.{index}"
    assert node.graph is not None
    node.graph.insert_after(node, new)
    replace(result, new[-1].outputs[0])
    for user, index in own:
        user.replace_input_with(index, result)
