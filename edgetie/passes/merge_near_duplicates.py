"""Copies of a table that are nearly equal to it: one side was rounded, or converted, apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import insert
from edgetie.graph.matching import producer, weight
from edgetie.graph.operators import operator
from edgetie.passes.base import GraphPass
from edgetie.passes.merge_duplicates import fixed

Array = np.ndarray[Any, Any]

ALIKE = 0.1
"""Relative distance beyond which two matrices are strangers."""
_ROWS = 256  # rows that strangers are told by
_PIECE = 4096  # rows at a time when all are compared


@dataclass(frozen=True)
class NearCopy:
    """A matrix close to a table that is looked up in.

    Attributes:
        name: the copy: an initializer, or the output of a DequantizeLinear.
        table: what it is close to.
        distance: Frobenius norm of the difference over that of the table.
        transposed: whether it is close to the table's transpose.
    """

    name: str
    table: str
    distance: float
    transposed: bool


@dataclass(frozen=True)
class _Matrix:
    """A float matrix in a graph: an initializer, or what a DequantizeLinear makes of one."""

    name: str
    value: ir.Value
    shape: tuple[int, ...]
    dtype: ir.DataType
    rows: Callable[[Any], Array]
    """Rows at some indices, float32."""

    columns: Callable[[Any], Array]


def near_copies(model: ir.Model) -> list[NearCopy]:
    """Matrices that are nearly a table of the same graph; those that must stay are left out.

    A few rows tell strangers; of the others every row is compared. What is close to several tables
    is a copy of the nearest.
    """
    matrices = [m for m in _matrices(model) if not fixed(m.value, model)]
    tables = [
        m
        for m in matrices
        if any(operator(n).startswith("Gather") and i == 0 for n, i in m.value.uses())
    ]
    found: dict[str, NearCopy] = {}
    for table in tables:
        sample = np.linspace(0, table.shape[0] - 1, min(_ROWS, table.shape[0])).astype(int)
        for other in matrices:
            if other.value is table.value or any(t.value is other.value for t in tables):
                continue
            if other.dtype != table.dtype:
                continue
            turned = other.shape == table.shape[::-1]
            if not turned and other.shape != table.shape:
                continue
            for transposed in {turned, other.shape != table.shape}:
                if _distance(table, other, transposed, [sample]) >= ALIKE:
                    continue
                every = np.arange(table.shape[0])
                pieces = [every[i : i + _PIECE] for i in range(0, len(every), _PIECE)]
                distance = _distance(table, other, transposed, pieces)
                known = found.get(other.name)
                if distance < ALIKE and (known is None or distance < known.distance):
                    found[other.name] = NearCopy(other.name, table.name, distance, transposed)
                    break
    return list(found.values())


def _distance(table: _Matrix, other: _Matrix, transposed: bool, pieces: list[Array]) -> float:
    """Relative distance over the rows in ``pieces``."""
    difference = size = 0.0
    for taken in pieces:
        expected = table.rows(taken)
        got = other.columns(taken).T if transposed else other.rows(taken)
        difference += float(np.linalg.norm(got - expected)) ** 2
        size += float(np.linalg.norm(expected)) ** 2
    return float(np.sqrt(difference / (size or 1.0)))


class MergeNearDuplicates(GraphPass):
    """Lets users of near copies read the table.

    Args:
        copies: what to merge.

    Attributes:
        merged: names of the copies that are gone.
    """

    name = "merge_near"

    def __init__(self, copies: Sequence[NearCopy]) -> None:
        super().__init__()
        self.copies = copies
        self.merged: list[str] = []

    def rewrite(self, model: ir.Model) -> None:
        by_name = {matrix.name: matrix for matrix in _matrices(model)}
        for copy in self.copies:
            table, other = by_name[copy.table].value, by_name[copy.name].value
            for node, index in list(other.uses()):
                value = table
                if copy.transposed:
                    turned = ir.node("Transpose", [table], {"perm": [1, 0]})
                    insert(node, turned)
                    value = turned.outputs[0]
                    value.shape, value.type = other.shape, other.type
                node.replace_input_with(index, value)
            self.merged.append(copy.name)
            self.changed += 1
        if self.changed:
            model.graph.sort()  # a table may be made behind the first user of its copy


def _matrices(model: ir.Model) -> Iterator[_Matrix]:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.size < MIN_ELEMENTS or len(tensor.shape) != 2:
            continue
        shape = tuple(tensor.shape.numpy())
        if tensor.dtype.is_floating_point():
            readers = _readers(tensor, None, None, 0)
            yield _Matrix(str(value.name), value, shape, tensor.dtype, *readers)
            continue
        for node, index in value.uses():
            made = node.outputs[0] if node.outputs else None
            if (
                made is None
                or index
                or node.graph is not model.graph  # a branch's value is not seen outside
                or len(node.inputs) < 2
                or producer(made, "DequantizeLinear") is not node
            ):
                continue
            scale, zero = weight(node.inputs[1]), None
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                zero = weight(node.inputs[2])
                if zero is None:
                    continue
            axis = node.attributes["axis"].as_int() % 2 if "axis" in node.attributes else 1
            if scale is None or len(scale.shape) > 1:
                continue  # blocks: their scales are laid out as the codes are
            if scale.size not in (1, shape[axis]):
                continue
            readers = _readers(tensor, scale.numpy(), zero.numpy() if zero else None, axis)
            yield _Matrix(str(made.name), made, shape, scale.dtype, *readers)


def _readers(
    tensor: ir.TensorProtocol, scale: Array | None, zero: Array | None, axis: int
) -> tuple[Callable[[Any], Array], Callable[[Any], Array]]:
    """Functions that give some rows, and some columns, in float32."""

    def part(index: Any, along: int) -> Array:
        taken = np.asarray(np.take(tensor.numpy(), index, axis=along), np.float32)

        def fitted(array: Array) -> Array:
            array = np.asarray(array, np.float32)
            if array.ndim == 0 or array.size == 1:
                return array.reshape(())
            array = array[index] if axis == along else array
            return array[:, None] if axis == 0 else array[None, :]

        if zero is not None:
            taken = taken - fitted(zero)
        return taken if scale is None else taken * fitted(scale)

    return (lambda index: part(index, 0)), (lambda index: part(index, 1))
