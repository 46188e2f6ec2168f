"""Find and merge copies of an embedding table that are nearly equal to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.errors import EdgetieError
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import insert
from edgetie.graph.matching import operator, weight
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass
from edgetie.passes.merge_duplicates import is_input_or_output, redirect_to_transpose

Array = np.ndarray[Any, Any]

MAX_DISTANCE = 0.1
"""Relative distance from which on two matrices are unrelated."""
_ROUNDINGS = (
    (ir.DataType.FLOAT16.numpy(), 2**-10, 2**-24),
    (ir.DataType.BFLOAT16.numpy(), 2**-7, 0.0),
)
"""Types of 16 bits, their relative precision, and their smallest number."""

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
        rounding: the type of 16 bits that one of both was rounded to, if that is the difference.
    """

    name: str
    table: str
    distance: float
    transposed: bool
    rounding: str | None = None

    def describe(self) -> str:
        """Describe what it is a copy of."""
        transposed = " transposed" if self.transposed else ""
        rounded = f" rounded to {self.rounding}" if self.rounding else ""
        return f"{self.name} is {self.table}{transposed}{rounded} but for {self.distance:.2%}"


@dataclass(frozen=True)
class _FloatMatrix:
    """A float matrix in a graph: an initializer, or what Cast or DequantizeLinear makes of one.

    A Cast has the initializer's name. Scales and zero points are of the tensor's ``axis``.
    """

    name: str
    value: ir.Value
    tensor: ir.TensorProtocol
    dtype: ir.DataType
    scale: Array
    zero_point: Array
    axis: int = 0
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.tensor.shape.numpy())
        return shape[::-1] if self.transposed else shape

    def rows(self, indices: Array) -> Array:
        """Return some rows in float32, of the transpose if it is transposed."""

        def take(array: Array) -> Array:
            if array.ndim < 2:  # a scale or zero point
                array = array.reshape((-1, 1) if self.axis == 0 else (1, -1))
                array = np.broadcast_to(array, tuple(self.tensor.shape.numpy()))
            part: Array = np.take(array.T if self.transposed else array, indices, axis=0)
            return part.astype(np.float32)

        return (take(self.tensor.numpy()) - take(self.zero_point)) * take(self.scale)


def near_copies(model: ir.Model) -> list[NearCopy]:
    """Find matrices that are nearly equal to an embedding table of the same graph.

    They arise if a converter rounds or quantizes only one of two tied weights. A matrix close to
    several tables is a copy of the nearest one. Graph inputs and outputs are left out.
    """
    candidates = [m for m in _float_matrices(model) if not is_input_or_output(m.value, model)]
    tables = [matrix for matrix in candidates if _is_table(matrix)]
    stored = {id(table.tensor) for table in tables}
    nearest: dict[str, NearCopy] = {}
    for other in candidates:
        if id(other.tensor) not in stored and other.name not in nearest:
            copies = filter(None, (_compare(table, other) for table in tables))
            for copy in sorted(copies, key=lambda copy: copy.distance)[:1]:
                nearest[other.name] = copy
    return list(nearest.values())


def _is_table(matrix: _FloatMatrix) -> bool:
    uses = matrix.value.uses()
    return any(operator(node).startswith("Gather") and index == 0 for node, index in uses)


def _compare(table: _FloatMatrix, other: _FloatMatrix) -> NearCopy | None:
    """Compare a matrix with a table, as it is and transposed: a few rows first, then all."""
    count = table.shape[0]
    sample = np.linspace(0, count - 1, min(_SAMPLED_ROWS, count)).astype(int)
    chunks = np.split(np.arange(count), range(_ROWS_AT_ONCE, count, _ROWS_AT_ONCE))
    for transposed in (False, True):
        copy = replace(other, transposed=transposed)
        if copy.shape != table.shape or _distance(table, copy, [sample]) >= MAX_DISTANCE:
            continue
        distance = _distance(table, copy, chunks)
        if distance < MAX_DISTANCE:
            rounding = _rounding(table, copy, chunks)
            return NearCopy(other.name, table.name, distance, transposed, rounding)
    return None


def _rounding(table: _FloatMatrix, copy: _FloatMatrix, chunks: Sequence[Array]) -> str | None:
    """Return the type that one of two matrices was rounded to, perhaps towards zero."""
    for dtype, step, smallest in _ROUNDINGS:
        is_rounded = [True, True]
        for rows in chunks:
            pair = table.rows(rows), copy.rows(rows)
            limit = step * np.abs(pair[0]) + smallest
            close = bool((np.abs(pair[1] - pair[0]) <= limit).all())
            for index, array in enumerate(pair):
                same = np.array_equal(array.astype(dtype).astype(np.float32), array)
                is_rounded[index] = is_rounded[index] and close and same
        if any(is_rounded):
            return str(dtype.name)
    return None


def _distance(table: _FloatMatrix, copy: _FloatMatrix, chunks: Sequence[Array]) -> float:
    """Compute the relative distance over the rows in ``chunks``."""
    difference = norm = 0.0
    for rows in chunks:
        expected = table.rows(rows)
        difference += float(np.linalg.norm(copy.rows(rows) - expected)) ** 2
        norm += float(np.linalg.norm(expected)) ** 2
    return float(np.sqrt(difference / (norm or 1.0)))


def check_max_distance(max_distance: float) -> None:
    """Refuse a distance that is out of range.

    Raises:
        EdgetieError: naming the range.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        message = f"must be a share of 0 to {MAX_DISTANCE:g}"
        raise EdgetieError(message, parameter="max_distance", value=max_distance)


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
        matrices = list(_float_matrices(model))
        for copy in self.copies:
            table = next(each for each in matrices if each.name == copy.table and _is_table(each))
            for other in matrices:
                if other.name == copy.name:
                    self._merge(model, table, other, copy.transposed)
            self.merged.append(copy.name)

        if self.changed:
            model.graph.sort()  # a dequantized table may come after the first user of its copy

    def _merge(
        self, model: ir.Model, table: _FloatMatrix, other: _FloatMatrix, transposed: bool
    ) -> None:
        source = table.value
        if table.dtype != other.dtype and other.value.uses():
            user = next(iter(other.value.uses()))[0]
            nodes = Nodes(model.graph)
            source = nodes.cast(source, other.dtype)
            insert(user, *nodes.nodes)
        if transposed:
            redirect_to_transpose(other.value, source)
        else:
            ir.convenience.replace_all_uses_with(other.value, source)
        self.changed += 1


def _float_matrices(model: ir.Model) -> Iterator[_FloatMatrix]:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.size < MIN_ELEMENTS or len(tensor.shape) != 2:
            continue
        name, nodes = str(value.name), [use for use in value.uses() if use[1] == 0]
        # a subgraph's value is not visible in the main graph
        nodes = [use for use in nodes if use[0].graph is model.graph]
        casts = [node for node, _ in nodes if operator(node) == "Cast"]
        if tensor.dtype.is_floating_point():
            matrices = [(node.outputs[0], _cast_type(node)) for node in casts]
            if len(casts) < len(value.uses()):
                matrices.append((value, tensor.dtype))
            for each, dtype in matrices:
                if dtype.is_floating_point():
                    yield _FloatMatrix(name, each, tensor, dtype, np.ones(1), np.zeros(1))
            continue
        for node, _ in nodes:
            if operator(node) == "DequantizeLinear":
                dequantized = _dequantized(node, tensor)
                if dequantized is not None:
                    yield dequantized


def _cast_type(cast: ir.Node) -> ir.DataType:
    return ir.DataType(cast.attributes["to"].as_int())


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
    result = node.outputs[0]
    return _FloatMatrix(
        str(result.name), result, tensor, scale.dtype, scale.numpy(), zero_point, axis
    )
