"""QuantizeLinear and DequantizeLinear around products (QDQ), for compilers of integer graphs.

NPUs and OpenVINO make integer products of them. Activations have one scale and zero point for each
tensor, fixed beforehand from what a calibration text shows; weights one scale for each output
channel. A token table is looked up in by row, in the codes; its product reads the same ones.

With 16 bits, what a product makes is rounded too: only then do NPUs take the product whole, its
weights as they are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer
from edgetie.quantize.formats.weight_format import (
    NodeBuilder,
    QuantizedWeight,
    ScaleGranularity,
    WeightFormat,
)
from edgetie.quantize.weights.affine import Array, QuantSpec

_MARGIN = 1.5  # of 16 bits: codes are many, and other texts have larger values


Range = tuple[float, float]


@dataclass(frozen=True)
class LinearOpRanges:
    """Smallest and largest value of the activation that a linear operator reads, and of its output
    if that is quantized too.
    """

    input: Range
    output: Range | None = None


class QdqFormat(WeightFormat):
    """8 bits with a scale for each output channel.

    Args:
        bits: of activations.
        ranges: around the product with each matrix, by its name.
        table: whether rows are looked up in the matrices: they stay ``(rows, columns)``.
    """

    branches = False  # it looks for weights of DequantizeLinear in the subgraph itself

    def __init__(
        self, bits: int, ranges: Mapping[str, LinearOpRanges], *, table: bool = False
    ) -> None:
        super().__init__()
        self.ranges, self.table = ranges, table
        self.activations = ScaleGranularity.TENSOR if bits == 8 else ScaleGranularity.NONE
        self.supports_rotation = bits == 8  # a real model's rotations did not fit QNN's simulator
        self.opset = 13 if bits == 8 else 21  # DequantizeLinear along an axis; uint16
        self._codes = np.dtype(f"uint{bits}")
        self._margin = 1.0 if bits == 8 else _MARGIN
        self._rounded: dict[ir.Value, ir.Value] = {}
        self._products: Counter[str] = Counter()

    def spec(self, columns: int) -> QuantSpec:
        return QuantSpec()

    def store(self, matrix: QuantizedWeight) -> None:
        if self.table:
            shape, make = (matrix.rows, matrix.columns), lambda: _columns_first(matrix).T
        else:
            shape, make = (matrix.columns, matrix.rows), lambda: _columns_first(matrix)
        matrix.codes = matrix.initializer("int8", ir.DataType.INT8, shape, make)

    def lookup(self, matrix: QuantizedWeight, ids: ir.Value, rank: int) -> NodeBuilder:
        """``row · scale``."""
        nodes = NodeBuilder(matrix.graph)
        rows = nodes("Cast", nodes("Gather", matrix.codes, ids), to=ir.DataType.FLOAT)
        nodes("Mul", rows, nodes("Gather", matrix.row_scales(lookup=True), ids))
        return nodes

    def product(
        self, matrix: QuantizedWeight, x: ir.Value, bias: ir.Value | None, *, exact: bool
    ) -> NodeBuilder:
        nodes = NodeBuilder(matrix.graph)
        fixed = self.ranges.get(matrix.name)
        if x not in self._rounded and fixed is not None:
            self._rounded[x] = self._round(nodes, matrix, x, "input", fixed.input)
        codes, zeros = self._entries(matrix)
        if self.table:
            codes = nodes("Transpose", codes, perm=[1, 0])
        weights = nodes("DequantizeLinear", codes, matrix.row_scales(), zeros, axis=1)
        result = nodes("MatMul", self._rounded.get(x, x), weights)
        if fixed is not None and fixed.output is not None:
            result = self._round(nodes, matrix, result, "output", fixed.output)
        if bias is not None:
            nodes("Add", result, bias)
        return nodes

    def _entries(self, matrix: QuantizedWeight) -> tuple[ir.Value, ir.Value]:
        """Codes and zero points, which some runtimes take for uint8 if they are left out.

        Each product has entries of its own over the same bytes: ONNX Runtime changes what a
        DequantizeLinear reads, and fails where two read the same.
        """
        number = self._products[matrix.label]
        self._products[matrix.label] += 1
        zeros = matrix.initializer(
            "zeros", ir.DataType.INT8, (matrix.rows,), lambda: np.zeros(matrix.rows, np.int8)
        )
        if not number:
            return matrix.codes, zeros
        return self._again(matrix, matrix.codes, f"codes.{number}"), self._again(
            matrix, zeros, f"zeros.{number}"
        )

    def _again(self, matrix: QuantizedWeight, value: ir.Value, suffix: str) -> ir.Value:
        tensor = value.const_value
        assert tensor is not None
        shape = tuple(int(size) for size in tensor.shape.numpy())
        made = matrix.initializer(suffix, tensor.dtype, shape, tensor.numpy)
        self.aliases[str(made.name)] = str(value.name)
        return made

    def _round(
        self, nodes: NodeBuilder, matrix: QuantizedWeight, value: ir.Value, side: str, limits: Range
    ) -> ir.Value:
        """An activation in steps of fixed size; zero has a code of its own."""
        low, high = (end * self._margin for end in (min(limits[0], 0.0), max(limits[1], 0.0)))
        most = np.iinfo(self._codes).max
        step = max((high - low) / most, 1e-12)
        middle = np.clip(round(-low / step), 0, most)
        name = f"{matrix.label}.{side}"
        scale = initializer(matrix.graph, f"{name}.scale", np.array(step, np.float32))
        zero = initializer(matrix.graph, f"{name}.zero", np.array(middle, self._codes))
        codes = nodes("QuantizeLinear", value, scale, zero)
        return nodes("DequantizeLinear", codes, scale, zero)


def _columns_first(matrix: QuantizedWeight) -> Array:
    """Signed codes, one column an output channel: int8 ``(columns, rows)``."""
    return (matrix.take_codes() ^ np.uint8(128)).view(np.int8).T
