"""QuantizeLinear and DequantizeLinear around products (QDQ), for compilers of integer graphs.

NPUs and OpenVINO make integer products of them. Activations have one scale and zero point for each
tensor, fixed beforehand from what a calibration text shows; weights one scale for each output
channel. A token table is looked up in by row, in the codes; its product reads the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgetie.passes._base import initializer
from edgetie.quantize.forms import Form, Matrix, Nodes, Span
from edgetie.quantize.grid import Array, Grid

Range = tuple[float, float]


class Static(Form):
    """8 bits with a scale for each output channel.

    Args:
        ranges: smallest and largest value of what each matrix is multiplied by, by its name.
        table: whether rows are looked up in the matrices: they stay ``(rows, columns)``.
    """

    activations = Span.TENSOR
    opset = 13  # DequantizeLinear along an axis

    def __init__(self, ranges: Mapping[str, Range], *, table: bool = False) -> None:
        super().__init__()
        self.ranges, self.table = ranges, table
        self._rounded: dict[ir.Value, ir.Value] = {}

    def grid(self, columns: int) -> Grid:
        return Grid()

    def store(self, matrix: Matrix) -> None:
        if self.table:
            shape, make = (matrix.rows, matrix.columns), lambda: _columns_first(matrix).T
        else:
            shape, make = (matrix.columns, matrix.rows), lambda: _columns_first(matrix)
        matrix.codes = matrix.initializer("int8", ir.DataType.INT8, shape, make)

    def lookup(self, matrix: Matrix, ids: ir.Value, rank: int) -> Nodes:
        """``row · scale``."""
        nodes = Nodes(matrix.graph)
        rows = nodes("Cast", nodes("Gather", matrix.codes, ids), to=ir.DataType.FLOAT)
        nodes("Mul", rows, nodes("Gather", matrix.row_scales(lookup=True), ids))
        return nodes

    def product(self, matrix: Matrix, x: ir.Value, bias: ir.Value | None, *, exact: bool) -> Nodes:
        nodes = Nodes(matrix.graph)
        if x not in self._rounded and matrix.name in self.ranges:
            scale, zero = self._steps(matrix)
            codes = nodes("QuantizeLinear", x, scale, zero)
            self._rounded[x] = nodes("DequantizeLinear", codes, scale, zero)
        axis = 0 if self.table else 1
        zeros = initializer(
            matrix.graph, f"{matrix.label}.zeros", np.zeros(matrix.rows, np.int8)
        )  # that are left out, some runtimes take for uint8
        weights = nodes("DequantizeLinear", matrix.codes, matrix.row_scales(), zeros, axis=axis)
        if self.table:
            weights = nodes("Transpose", weights, perm=[1, 0])
        result = nodes("MatMul", self._rounded.get(x, x), weights)
        if bias is not None:
            nodes("Add", result, bias)
        return nodes

    def _steps(self, matrix: Matrix) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of an activation of uint8; zero has a code of its own."""
        low, high = (min(self.ranges[matrix.name][0], 0.0), max(self.ranges[matrix.name][1], 0.0))
        scale = max((high - low) / 255, 1e-12)
        zero = np.clip(round(-low / scale), 0, 255)
        return (
            initializer(matrix.graph, f"{matrix.label}.input.scale", np.array(scale, np.float32)),
            initializer(matrix.graph, f"{matrix.label}.input.zero", np.array(zero, np.uint8)),
        )


def _columns_first(matrix: Matrix) -> Array:
    """Signed codes, one column an output channel: int8 ``(columns, rows)``."""
    return (matrix.take_codes() ^ np.uint8(128)).view(np.int8).T
