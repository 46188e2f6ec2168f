"""Rotation: activations mixed within blocks by a Hadamard matrix before they are rounded.

A block of int8 values shares one scale, so one large value costs its neighbours their precision.
Multiplying a block by an orthogonal matrix of +1 and -1 spreads a large value over all of them, and
the weights by its transpose undoes it (QuaRot, Ashkboos et al. 2024; QuIP#, Tseng et al. 2024). The
weights' own outliers are spread as well. The activations' side costs a small product at run time,
except behind attention: there the values are rotated by the projection that makes them. What is
looked up in a tied table is rotated back; the table stays one.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer, insert
from edgetie.graph.operators import operator
from edgetie.passes.base import GraphPass
from edgetie.quantize.preprocess.linear_inputs import (
    LinearInput,
    find_linear_inputs,
    insert_after,
    transform_weight,
)
from edgetie.quantize.preprocess.value_projection import ValueProjection, find_value_projection
from edgetie.quantize.weights.affine import Array
from edgetie.quantize.weights.linear_op import ROTATION_PREFIX

LARGEST = 64
_STEP = 1 << 15  # blocks at a time


def rotation_size(channels: int) -> int:
    """The largest power of two up to 64 that divides ``channels``."""
    return min(LARGEST, channels & -channels)


def linear_input_rotation(linear_input: LinearInput) -> int:
    """The size of a site's rotation; 1 where there is none.

    Where attention's values can be rotated in front of it, blocks lie within a head.
    """
    values = find_value_projection(linear_input)
    return rotation_size(linear_input.channels if values is None else values.head_size)


@cache
def hadamard(size: int) -> Array:
    """Sylvester's symmetric orthogonal matrix; ``size`` is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size), np.float32)


class Rotate(GraphPass):
    """Rotates activations in front of products, and the matrices behind them.

    Args:
        names: the activations.

    Attributes:
        free: how many of them were rotated by the projection that makes them.
    """

    name = "rotate"

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names
        self.free = 0

    def rewrite(self, model: ir.Model) -> None:
        for name, linear_input in find_linear_inputs(model).items():
            size = linear_input_rotation(linear_input)
            if name not in self.names or size < 2:
                continue
            matrix = hadamard(size)
            values = find_value_projection(linear_input)
            if values is not None:
                _rotate_values(values, matrix)
                self.free += 1
            else:
                self._activations(model.graph, linear_input, size)
            for product in linear_input.linear_ops:
                if product.transposed:
                    transform_weight(product.weight, lambda w, h=matrix: rotated_columns(w, h))  # type: ignore[misc]
                    continue
                for node, index in list(product.weight.uses()):
                    if operator(node) == "Gather" and index == 0:
                        insert_after(
                            node, *_nodes(model.graph, node.outputs[0], linear_input.channels, size)
                        )
                transform_weight(product.weight, lambda w, h=matrix: rotated(w, h))  # type: ignore[misc]
            self.changed += 1

    def _activations(self, graph: ir.Graph, linear_input: LinearInput, size: int) -> None:
        readers = [(user, i) for user, i in linear_input.value.uses() if operator(user) != "Shape"]
        nodes = _nodes(graph, linear_input.value, linear_input.channels, size)
        insert(_first(graph, [user for user, _ in readers]), *nodes)
        result = nodes[-1].outputs[0]
        result.shape, result.type = linear_input.value.shape, linear_input.value.type
        for user, index in readers:
            user.replace_input_with(index, result)


def _rotate_values(values: ValueProjection, matrix: Array) -> None:
    """Rotate the columns of a projection, and entries of a bias, that become values."""
    for weight, start in values.parts:

        def change(array: Array, start: int = start) -> Array:
            rows = np.array(np.atleast_2d(array))
            part = rows[:, start : start + values.width]
            rows[:, start : start + values.width] = rotated(part, matrix)
            return rows.reshape(array.shape)

        transform_weight(weight, change)


def rotated(rows: Array, matrix: Array) -> Array:
    """Rows ``(…, channels)`` with each block multiplied by ``matrix``."""
    # in place where the rows are a copy already: a large table is in memory once
    result = np.require(rows, requirements=["C", "W"])
    blocks = result.reshape(-1, len(matrix))
    for start in range(0, len(blocks), _STEP):
        blocks[start : start + _STEP] = blocks[start : start + _STEP] @ matrix
    return result


def rotated_columns(columns: Array, matrix: Array) -> Array:
    """``(channels, n)`` with each block of channels multiplied by a symmetric ``matrix``."""
    blocks = columns.reshape(-1, len(matrix), columns.shape[1])
    return np.asarray((matrix @ blocks).reshape(columns.shape))


def _nodes(graph: ir.Graph, value: ir.Value, channels: int, size: int) -> list[ir.Node]:
    """``value`` in blocks, times the matrix, and flat again."""
    rank = len(value.shape) if value.shape is not None else 0
    keep = [0] * (rank - 1)
    split = np.array([*keep, channels // size, size] if rank else [-1, size], np.int64)
    blocks = initializer(graph, f"{ROTATION_PREFIX}blocks.{rank}.{channels}.{size}", split)
    matrix = initializer(graph, f"{ROTATION_PREFIX}hadamard.{size}", hadamard(size))
    parts = ir.node("Reshape", [value, blocks])
    mixed = ir.node("MatMul", [parts.outputs[0], matrix])
    if rank:
        flat = np.array([*keep, channels], np.int64)
        shape = initializer(graph, f"{ROTATION_PREFIX}flat.{rank}.{channels}", flat)
        return [parts, mixed, ir.node("Reshape", [mixed.outputs[0], shape])]
    whole = ir.node("Shape", [value])
    result = ir.node("Reshape", [mixed.outputs[0], whole.outputs[0]])
    return [parts, mixed, whole, result]


def _first(graph: ir.Graph, nodes: list[ir.Node]) -> ir.Node:
    """The one that comes first in the graph."""
    wanted = set(map(id, nodes))
    return next(node for node in graph if id(node) in wanted)
