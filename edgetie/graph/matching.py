"""Read a graph: producers, users, constants, attributes and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.graph.operators import operator


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes ``value``, if it is one of ``op_types``."""
    if value is None:
        return None
    node = value.producer()
    return node if node is not None and operator(node) in op_types else None


def only_user(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The one node that uses ``value``, if there is one and it is one of ``op_types``."""
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    node = next(iter(value.uses()))[0]
    return node if not op_types or operator(node) in op_types else None


def constant(value: ir.Value | None, limit: int = 1 << 16) -> np.ndarray[Any, Any] | None:
    """The array behind a small constant, or ``None``."""
    if value is None or value.const_value is None or value.const_value.size > limit:
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | int | None:
    """The number behind a constant of one element, or ``None``."""
    array = constant(value, limit=1)
    return None if array is None or array.size != 1 else array.reshape(()).item()


def weight(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer, of any size, or ``None``."""
    return None if value is None or not value.is_initializer() else value.const_value


def attribute_ints(node: ir.Node, name: str) -> list[int] | None:
    """An attribute's integers, or ``None`` where it is absent."""
    attribute = node.attributes.get(name)
    return None if attribute is None else [int(i) for i in attribute.as_ints()]


def last_dimension(value: ir.Value) -> int | None:
    """The size of the last axis, if it is known."""
    if value.shape is None or len(value.shape) == 0:
        return None
    size = value.shape[-1]
    return size if isinstance(size, int) else None


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether both shapes are known and equal, symbolic dimensions by name."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(
        x == y if isinstance(x, int) or isinstance(y, int) else x.value == y.value
        and x.value is not None
        for x, y in zip(a.shape, b.shape, strict=True)
    )  # fmt: skip
