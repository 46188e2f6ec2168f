"""The mapped layout: int8 weights that products read where the file is mapped.

ONNX Runtime packs the constant right-hand side of a product into memory of its own when a session
starts, if it has two axes. So weights have three, ``(1, columns, rows)``, and are read as they are:
nothing is copied, a session is ready at once, processes share the pages. Of a token table one
column is a token, gathered along the last axis of the same bytes.

Activations become two numbers of seven bits each, which together have the precision of thirteen,
with a scale for each token. On x86 each part has a product of its own where a matrix is large:
kernels there multiply one row with a matrix in place, and know nothing of several rows, nor of zero
points, so parts are shifted to unsigned codes and what that adds is known beforehand. Else a matrix
is copied for each product, and both parts are rows of one. Seven bits, because x86 processors
without VNNI add pairs of products of uint8 and int8 in 16 bits: 127 · 128 · 2 still fits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgetie.graph.constants import MICROSOFT
from edgetie.graph.editing import initializer
from edgetie.quantize.formats.weight_format import (
    NodeBuilder,
    QuantizedWeight,
    ScaleGranularity,
    WeightFormat,
)
from edgetie.quantize.weights.affine import Array, QuantSpec

LARGEST = 64
"""Of the first part of an activation, and its zero point: codes are 128 at most."""

HIGHER_PRECISION = 85
"""Of the second part's steps make one of the first; its zero point too, so that half a step of the
first is a code of 128 at most."""

_LARGE = 1 << 21  # bytes that are copied more slowly than a second product starts
_TINY = 1e-30  # added to a mean of squares: tokens may be all zeros
_SMALLEST_BLOCK = 16  # of GatherBlockQuantized


class MatMulIntegerFormat(WeightFormat):
    """8 bits with a scale for each row, read in place.

    Args:
        apart: give both parts of activations a product of their own where matrices are large.
    """

    activations = ScaleGranularity.NONE  # they are hardly rounded
    opset = 18  # Split into a number of parts, ReduceL2 along an input
    rounding = MICROSOFT  # its kernels are found sooner than the standard's, of many versions

    def __init__(self, *, apart: bool = True) -> None:
        super().__init__()
        self._apart = apart
        self._parts: dict[ir.Value, tuple[list[ir.Value], ir.Value]] = {}
        self._together: dict[ir.Value, ir.Value] = {}
        self._zeros: dict[ir.Value, ir.Value] = {}
        self._sums: dict[QuantizedWeight, Array] = {}

    def spec(self, columns: int) -> QuantSpec:
        return QuantSpec()

    def takes(self, x: ir.Value) -> bool:
        return x.shape is not None and len(x.shape) > 1

    def store(self, matrix: QuantizedWeight) -> None:
        """Matrices that are only looked up in keep their rows: a token is one page, not many."""
        if not matrix.multiplied:
            shape: tuple[int, ...] = matrix.rows, matrix.columns
            matrix.codes = matrix.initializer("int8", ir.DataType.UINT8, shape, matrix.take_codes)
            return

        def codes() -> Array:
            taken = matrix.take_codes()
            self._sums[matrix] = _sums(taken)
            return (taken.T ^ np.uint8(128)).view(np.int8)[None]

        shape = 1, matrix.columns, matrix.rows
        matrix.codes = matrix.initializer("int8", ir.DataType.INT8, shape, codes)

    def lookup(self, matrix: QuantizedWeight, ids: ir.Value, rank: int) -> NodeBuilder:
        nodes = NodeBuilder(matrix.graph)
        scales = matrix.row_scales(lookup=True)
        if not matrix.multiplied:
            self._rows(nodes, matrix, ids, scales)
            return nodes
        taken = nodes("Gather", matrix.codes, ids, axis=2)
        first = initializer(matrix.graph, "mapped.first", np.array([0], np.int64))
        columns = nodes("Squeeze", taken, first)
        rows = nodes("Transpose", columns, perm=[*range(1, rank + 1), 0])
        floats = nodes("Cast", rows, to=ir.DataType.FLOAT)
        nodes("Mul", floats, nodes("Gather", scales, ids))
        return nodes

    def _rows(
        self, nodes: NodeBuilder, matrix: QuantizedWeight, ids: ir.Value, scales: ir.Value
    ) -> None:
        """GatherBlockQuantized; a block that is longer than a row is the row."""
        nodes(
            "GatherBlockQuantized",
            *(matrix.codes, ids, scales),
            domain=MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            block_size=max(_SMALLEST_BLOCK, 1 << (matrix.columns - 1).bit_length()),
            bits=8,
        )

    def product(
        self, matrix: QuantizedWeight, x: ir.Value, bias: ir.Value | None, *, exact: bool
    ) -> NodeBuilder:
        """The sum of the products with both parts, ``85 (W · coarse) + W · fine``."""
        assert x.shape is not None
        nodes = NodeBuilder(matrix.graph)
        if x not in self._parts:
            steps, in_one = self._steps(nodes, x, matrix.columns)
            self._parts[x] = self._split(nodes, steps), in_one
        parts, in_one = self._parts[x]
        higher_precision = initializer(
            matrix.graph, "mapped.finer", np.array(HIGHER_PRECISION, np.float32)
        )
        zero = (
            self._unfolded_zero(nodes, x, in_one)
            if matrix.uses > 1 or self._large(matrix)
            else None
        )
        coarse, fine = self._products(nodes, matrix, parts, zero)
        floats = (
            nodes("DequantizeLinear", coarse, higher_precision, domain=self.rounding),
            nodes("Cast", fine, to=ir.DataType.FLOAT),
        )
        sums = nodes("Sum", *floats, self._shift(matrix))
        result = nodes("Mul", nodes("Div", sums, in_one), self._scales(matrix))
        if len(x.shape) < 3:
            first = initializer(matrix.graph, "mapped.first", np.array([0], np.int64))
            result = nodes("Squeeze", result, first)
        if bias is not None:
            nodes("Add", result, bias)
        return nodes

    def _large(self, matrix: QuantizedWeight) -> bool:
        return self._apart and matrix.rows * matrix.columns >= _LARGE

    def _products(
        self,
        nodes: NodeBuilder,
        matrix: QuantizedWeight,
        parts: list[ir.Value],
        zero: ir.Value | None,
    ) -> Sequence[ir.Value]:
        if self._large(matrix):
            return [nodes("MatMulInteger", part, matrix.codes, None, zero) for part in parts]
        first = parts[0]
        if first not in self._together:
            self._together[first] = nodes("Concat", *parts, axis=-2)
        both = nodes("MatMulInteger", self._together[first], matrix.codes, None, zero)
        split = ir.node("Split", [both], {"axis": -2, "num_outputs": 2}, num_outputs=2)
        nodes.append(split)
        return split.outputs

    def _unfolded_zero(self, nodes: NodeBuilder, x: ir.Value, in_one: ir.Value) -> ir.Value:
        """The zero point of weights, 0, which constant folding does not find: whether a number is
        less than itself.

        Were it a constant, ONNX Runtime would make a uint8 copy of a weight for each product where
        ``session.x64quantprecision`` is set, and fail at the second, as both have one name.
        """
        if x not in self._zeros:
            least = nodes("ReduceMin", in_one, keepdims=0)
            self._zeros[x] = nodes("Cast", nodes("Less", least, least), to=ir.DataType.INT8)
        return self._zeros[x]

    def _shift(self, matrix: QuantizedWeight) -> ir.Value:
        """Minus what the zero points of both parts add."""

        def make() -> Array:
            sums = self._sums.get(matrix)
            sums = _sums(matrix.small().codes) if sums is None else sums
            return sums * np.float32(-(LARGEST * HIGHER_PRECISION + HIGHER_PRECISION))

        return matrix.initializer("shift", ir.DataType.FLOAT, (matrix.rows,), make)

    def _steps(self, nodes: NodeBuilder, x: ir.Value, columns: int) -> tuple[ir.Value, ir.Value]:
        """``x`` of each token in steps of which 64 hold the largest it can be, and what one is
        multiplied with for that, but for what :meth:`_scales` knows.

        No number is larger than the root of the sum of squares, which one operator divides by.
        """
        gain = np.full(columns, LARGEST / np.sqrt(columns), np.float32)
        gains = initializer(nodes.graph, f"mapped.steps.{columns}", gain)
        norm = ir.node(
            "SimplifiedLayerNormalization",
            [x, gains],
            {"axis": -1, "epsilon": _TINY},
            num_outputs=2,
        )
        nodes.append(norm)
        return norm.outputs[0], norm.outputs[1]

    def _split(self, nodes: NodeBuilder, steps: ir.Value) -> list[ir.Value]:
        """Both parts as uint8 codes."""
        whole = nodes("Round", steps)
        parts = []
        for part, higher_precision, zero in (
            (whole, 1, LARGEST),
            (nodes("Sub", steps, whole), HIGHER_PRECISION, HIGHER_PRECISION),
        ):
            step = initializer(
                nodes.graph,
                f"mapped.step.{higher_precision}",
                np.array(1 / higher_precision, np.float32),
            )
            middle = initializer(
                nodes.graph, f"mapped.zero.{higher_precision}", np.array(zero, np.uint8)
            )
            parts.append(nodes("QuantizeLinear", part, step, middle, domain=self.rounding))
        return parts

    def _scales(self, matrix: QuantizedWeight) -> ir.Value:
        return matrix.row_scales(
            times=float(np.sqrt(matrix.columns)) / (LARGEST * HIGHER_PRECISION)
        )


def _sums(codes: Array) -> Array:
    """Of each row, zero being 128."""
    sums = codes.sum(axis=1, dtype=np.int32) - np.int32(128 * codes.shape[1])
    return np.asarray(sums, np.float32)
