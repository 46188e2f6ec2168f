"""Read a graph: operators, producers, users, constants, attributes and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


_STANDARD_DOMAINS = ("", "ai.onnx", "com.microsoft")


def operator(node: ir.Node) -> str:
    """Return a node's operator type, with its domain as prefix unless ONNX or ONNX Runtime owns it.

    A ``MatMul`` of another domain need not multiply.
    """
    if node.domain in _STANDARD_DOMAINS:
        return node.op_type
    return f"{node.domain}::{node.op_type}"


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the node that computes ``value`` if it is one of ``op_types``."""
    node = value.producer() if value is not None else None
    return node if node is not None and operator(node) in op_types else None


def only_user(value: ir.Value, *op_types: str) -> ir.Node | None:
    """Return the node that uses ``value`` if it is the only one, and one of ``op_types``."""
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    node = next(iter(value.uses()))[0]
    return node if not op_types or operator(node) in op_types else None


def outer_node(node: ir.Node, graph: ir.Graph) -> ir.Node:
    """Return the node of a graph that a node is, or in whose subgraph it is."""
    import onnx_ir as ir

    for outer in graph:
        view = ir.GraphView([], [], nodes=[outer])
        if any(inner is node for inner in ir.traversal.RecursiveGraphIterator(view)):
            return outer
    raise ValueError(f"{node.name} is not in the graph")


def operand_orders(node: ir.Node) -> Iterator[tuple[ir.Value | None, ir.Value | None]]:
    """Yield the two inputs of a commutative operator in both orders."""
    left, right = node.inputs
    yield left, right
    yield right, left


def other_operand(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the input of a binary operator that is not ``value``."""
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def constant(value: ir.Value | None, limit: int = 1 << 16) -> np.ndarray[Any, Any] | None:
    """Return the array of a constant of at most ``limit`` elements."""
    if value is None or value.const_value is None or value.const_value.size > limit:
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | int | None:
    """Return the number of a constant of one element."""
    array = constant(value, limit=1)
    return None if array is None or array.size != 1 else array.reshape(()).item()


def weight(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer of any size."""
    return None if value is None or not value.is_initializer() else value.const_value


def attribute_ints(node: ir.Node, name: str) -> list[int] | None:
    """Return the integers of an attribute, or ``None`` if the node does not have it."""
    attribute = node.attributes.get(name)
    return None if attribute is None else [int(i) for i in attribute.as_ints()]


def rank(value: ir.Value) -> int:
    """Return the number of axes, 0 if it is unknown."""
    return len(value.shape) if value.shape is not None else 0


def last_dimension(value: ir.Value) -> int | None:
    """Return the size of the last axis if it is known."""
    if value.shape is None or len(value.shape) == 0:
        return None
    size = value.shape[-1]
    return size if isinstance(size, int) else None


def same_shape(a: ir.Value, b: ir.Value, *, end: int | None = None) -> bool:
    """Whether both shapes are known, of one rank, and equal up to the axis ``end``.

    Symbolic dimensions are compared by name.
    """
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(
        x == y if isinstance(x, int) or isinstance(y, int) else x.value == y.value is not None
        for x, y in zip(a.shape[:end], b.shape[:end], strict=True)
    )
