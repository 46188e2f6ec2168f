"""Find and merge copies of an embedding table that are nearly equal to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.matching import operator, weight
from edgetie.passes.base import GraphPass
from edgetie.passes.merge_duplicates import is_input_or_output, redirect_to_transpose

Array = np.ndarray[Any, Any]

MAX_DISTANCE = 0.1
"""Relative distance from which on two matrices are unrelated."""
_SAMPLED_ROWS = 256  # compared first
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class NearCopy:
    """A matrix close to an embedding table.

    Attributes:
        name: the copy: an initializer, or the output of a DequantizeLinear.
        table: the embedding table.
        distance: Frobenius norm of the difference over that of the table.
        transposed: whether it is close to the table's transpose.
    """

    name: str
    table: str
    distance: float
    transposed: bool


@dataclass(frozen=True)
class _FloatMatrix:
    """A float matrix in a graph: an initializer, or the output of a DequantizeLinear of one."""

    value: ir.Value
    tensor: ir.TensorProtocol
    dtype: ir.DataType
    scale: Array
    zero_point: Array
    axis: int = 0

    @property
    def name(self) -> str:
        return str(self.value.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape.numpy())

    def read(self, indices: Any, along: int) -> Array:
        """Return the rows (axis 0) or columns (axis 1) at some indices in float32."""

        def take(array: Array) -> Array:
            if array.ndim < 2:  # a scale or zero point
                array = array.reshape((-1, 1) if self.axis == 0 else (1, -1))
                array = np.broadcast_to(array, self.shape)
            part: Array = np.take(array, indices, axis=along)
            return part.astype(np.float32)

        return (take(self.tensor.numpy()) - take(self.zero_point)) * take(self.scale)


def near_copies(model: ir.Model) -> list[NearCopy]:
    """Find matrices that are nearly equal to an embedding table of the same graph.

    They arise if a converter rounds or quantizes only one of two tied weights. A matrix close to
    several tables is a copy of the nearest one. Graph inputs and outputs are left out.
    """
    candidates = [m for m in _float_matrices(model) if not is_input_or_output(m.value, model)]
    tables = {m.value: m for m in candidates if _is_table(m)}
    nearest: list[NearCopy] = []
    for other in candidates:
        if other.value not in tables:
            copies = [_compare(t, other) for t in tables.values() if t.dtype == other.dtype]
            nearest += sorted(filter(None, copies), key=lambda copy: copy.distance)[:1]
    return nearest


def _is_table(matrix: _FloatMatrix) -> bool:
    uses = matrix.value.uses()
    return any(operator(node).startswith("Gather") and index == 0 for node, index in uses)


def _compare(table: _FloatMatrix, other: _FloatMatrix) -> NearCopy | None:
    """Compare a matrix with a table, as it is and transposed: a few rows first, then all."""
    rows = table.shape[0]
    sample = np.linspace(0, rows - 1, min(_SAMPLED_ROWS, rows)).astype(int)
    for transposed in (False, True):
        if other.shape != (table.shape[::-1] if transposed else table.shape):
            continue
        if _distance(table, other, transposed, [sample]) < MAX_DISTANCE:
            chunks = np.split(np.arange(rows), range(_ROWS_AT_ONCE, rows, _ROWS_AT_ONCE))
            distance = _distance(table, other, transposed, chunks)
            if distance < MAX_DISTANCE:
                return NearCopy(other.name, table.name, distance, transposed)
    return None


def _distance(
    table: _FloatMatrix, other: _FloatMatrix, transposed: bool, chunks: list[Array]
) -> float:
    """Compute the relative distance over the rows in ``chunks``."""
    difference = norm = 0.0
    for rows in chunks:
        expected = table.read(rows, 0)
        actual = other.read(rows, 1).T if transposed else other.read(rows, 0)
        difference += float(np.linalg.norm(actual - expected)) ** 2
        norm += float(np.linalg.norm(expected)) ** 2
    return float(np.sqrt(difference / (norm or 1.0)))


class MergeNearDuplicates(GraphPass):
    """Lets the users of near copies read the table.

    Args:
        copies: what to merge.

    Attributes:
        merged: names of the copies that were removed.
    """

    def __init__(self, copies: Sequence[NearCopy]) -> None:
        super().__init__()
        self.copies = copies
        self.merged: list[str] = []

    def rewrite(self, model: ir.Model) -> None:
        by_name = {matrix.name: matrix.value for matrix in _float_matrices(model)}
        for copy in self.copies:
            table, other = by_name[copy.table], by_name[copy.name]
            if copy.transposed:
                redirect_to_transpose(other, table)
            else:
                ir.convenience.replace_all_uses_with(other, table)
            self.merged.append(copy.name)
            self.changed += 1
        if self.changed:
            model.graph.sort()  # a dequantized table may come after the first user of its copy


def _float_matrices(model: ir.Model) -> Iterator[_FloatMatrix]:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.size < MIN_ELEMENTS or len(tensor.shape) != 2:
            continue
        if tensor.dtype.is_floating_point():
            yield _FloatMatrix(value, tensor, tensor.dtype, np.ones(1), np.zeros(1))
            continue
        for node, index in value.uses():
            # a subgraph's value is not visible in the main graph
            if operator(node) == "DequantizeLinear" and not index and node.graph is model.graph:
                dequantized = _dequantized(node, tensor)
                if dequantized is not None:
                    yield dequantized


def _dequantized(node: ir.Node, tensor: ir.TensorProtocol) -> _FloatMatrix | None:
    """Return the result of a DequantizeLinear of ``tensor`` with scales for an axis or for all."""
    scale, zero_point = weight(node.inputs[1]), np.zeros(1)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zeros = weight(node.inputs[2])
        if zeros is None:
            return None
        zero_point = zeros.numpy()
    axis = node.attributes.get_int("axis", 1) % 2
    if scale is None or len(scale.shape) > 1 or scale.size not in (1, tensor.shape[axis]):
        return None  # scales of blocks have the layout of the quantized values
    return _FloatMatrix(node.outputs[0], tensor, scale.dtype, scale.numpy(), zero_point, axis)
