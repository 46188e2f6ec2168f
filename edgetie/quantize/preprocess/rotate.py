"""Rotate activations by a Hadamard matrix within blocks: a large value spreads over its neighbours.

The same rotation of the weights undoes it (QuaRot, Ashkboos et al. 2024; QuIP#, Tseng et al. 2024).
It costs a small MatMul at run time, except after attention, where the projection of the values
rotates them. Rows gathered from a tied embedding are rotated back.
"""

from collections.abc import Collection
from functools import cache, partial

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import insert
from edgetie.graph.matching import operator, rank
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass
from edgetie.quantize.preprocess.adapter_inputs import inputs_down
from edgetie.quantize.preprocess.linear_inputs import (
    LinearInput,
    find_linear_inputs,
    insert_after,
    transform_weight,
)
from edgetie.quantize.preprocess.value_projection import ValueProjection, find_value_projection
from edgetie.quantize.weights.affine import Array
from edgetie.quantize.weights.linear_op import ROTATION_PREFIX

_BLOCKS_AT_ONCE = 1 << 15


def rotation_size(linear_input: LinearInput) -> int:
    """Return the block size of an activation's rotation; 1 if it cannot be rotated.

    It is the largest power of two up to 64 that divides the channels, or those of a head if the
    projection of attention's values rotates.
    """
    values = find_value_projection(linear_input)
    channels = linear_input.channels if values is None else values.head_size
    return min(64, channels & -channels)


@cache
def hadamard(size: int) -> Array:
    """Return Sylvester's symmetric orthogonal matrix. ``size`` is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size), np.float32)


class Rotate(GraphPass):
    """Rotate activations, and the weights that read them."""

    name = "rotate"

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def rewrite(self, model: ir.Model) -> None:
        for name, linear_input in find_linear_inputs(model).items():
            size = rotation_size(linear_input)
            if name not in self.names or size < 2:
                continue
            matrix, downs = hadamard(size), inputs_down(linear_input.value)
            values = find_value_projection(linear_input)
            if values is not None:
                _rotate_values(values, matrix)
            else:
                _rotate_activation(model.graph, linear_input, size)
            for linear_op in linear_input.linear_ops:
                if linear_op.transposed:
                    transform_weight(linear_op.weight, partial(_rotate_rows, matrix=matrix))
                    continue
                for node in linear_op.gathers:
                    value, channels = node.outputs[0], linear_input.channels
                    insert_after(node, *_rotation_nodes(model.graph, value, channels, size))
                transform_weight(linear_op.weight, partial(rotate_blocks, matrix=matrix))
            for down in downs:
                transform_weight(down, partial(_rotate_rows, matrix=matrix))
            self.changed += 1


def _rotate_activation(graph: ir.Graph, linear_input: LinearInput, size: int) -> None:
    """Insert a rotation between an activation and the nodes that compute with it."""
    value = linear_input.value
    readers = [(user, index) for user, index in value.uses() if operator(user) != "Shape"]
    nodes = _rotation_nodes(graph, value, linear_input.channels, size)
    reading_nodes = {user for user, _ in readers}
    insert(next(node for node in graph if node in reading_nodes), *nodes)
    result = nodes[-1].outputs[0]
    result.shape, result.type = value.shape, value.type
    for user, index in readers:
        user.replace_input_with(index, result)


def _rotate_values(values: ValueProjection, matrix: Array) -> None:
    """Rotate the columns of a projection's weight and bias that compute attention's values."""

    def rotate(array: Array) -> Array:
        result = np.array(array)
        result[..., values.start :] = rotate_blocks(result[..., values.start :], matrix)
        return result

    for value in values.parameters:
        transform_weight(value, rotate)


def rotate_blocks(array: Array, matrix: Array) -> Array:
    """Multiply each block of channels of ``(…, channels)`` by ``matrix``, in place if possible."""
    result = np.require(array, requirements=["C", "W"])  # no second copy of a large embedding
    blocks = result.reshape(-1, len(matrix))
    for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
        blocks[start : start + _BLOCKS_AT_ONCE] = blocks[start : start + _BLOCKS_AT_ONCE] @ matrix
    return result


def _rotate_rows(array: Array, matrix: Array) -> Array:
    """Multiply each block of channels of ``(channels, n)`` by a symmetric ``matrix``."""
    blocks = array.reshape(-1, len(matrix), array.shape[1])
    return np.asarray((matrix @ blocks).reshape(array.shape))


def _rotation_nodes(graph: ir.Graph, value: ir.Value, channels: int, size: int) -> list[ir.Node]:
    """Make nodes that split ``value`` into blocks, multiply them and join them."""
    nodes, axes = Nodes(graph), rank(value)
    leading = [0] * (axes - 1)
    split_shape = [*leading, channels // size, size] if axes else [-1, size]
    split_name = f"{ROTATION_PREFIX}blocks.{axes}.{channels}.{size}"
    blocks = nodes("Reshape", value, nodes.integers(split_name, split_shape))
    matrix = nodes.constant(f"{ROTATION_PREFIX}hadamard.{size}", hadamard(size), np.float32)
    rotated = nodes("MatMul", blocks, matrix)
    if axes:
        shape = nodes.integers(f"{ROTATION_PREFIX}flat.{axes}.{channels}", [*leading, channels])
    else:
        shape = nodes("Shape", value)
    nodes("Reshape", rotated, shape)
    return list(nodes.nodes)
