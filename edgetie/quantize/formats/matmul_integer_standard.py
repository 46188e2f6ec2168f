"""Operators of the ONNX standard alone: any runtime runs them.

A product is MatMulInteger; its activations are rounded when the model runs, by
DynamicQuantizeLinear. ONNX Runtime makes one operator of these four on its CPU. A token table lies
as :mod:`edgetie.quantize.formats.matmul_integer` has it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer
from edgetie.quantize.formats.matmul_integer import HIGHER_PRECISION, LARGEST, MatMulIntegerFormat
from edgetie.quantize.formats.weight_format import (
    NodeBuilder,
    QuantizedWeight,
    ScaleGranularity,
    WeightFormat,
)
from edgetie.quantize.weights.affine import QuantSpec

_TINY = 1e-30  # in the place of zero, of tokens that are all zeros


class DynamicMatMulIntegerFormat(WeightFormat):
    """8 bits with a scale for each output channel; activations with one for each token.

    DynamicQuantizeLinear knows one scale for a whole tensor, so each token is divided by its
    largest magnitude in front of it. Codes are uint8, as x86 processors without VNNI add pairs of
    products of uint8 and int8 in 16 bits, which are too few, and of two uint8 in 32.
    """

    activations = ScaleGranularity.TOKEN
    opset = 18  # ReduceMax along an input

    def __init__(self) -> None:
        super().__init__()
        self._rounded: dict[ir.Value, tuple[ir.Value, ...]] = {}

    def spec(self, columns: int) -> QuantSpec:
        return QuantSpec()

    def store(self, matrix: QuantizedWeight) -> None:
        matrix.codes = matrix.initializer(
            "int8", ir.DataType.UINT8, (matrix.columns, matrix.rows), lambda: matrix.take_codes().T
        )

    def lookup(self, matrix: QuantizedWeight, ids: ir.Value, rank: int) -> list[ir.Node]:
        raise NotImplementedError  # tables have a form of their own

    def product(
        self, matrix: QuantizedWeight, x: ir.Value, bias: ir.Value | None, *, exact: bool
    ) -> NodeBuilder:
        nodes = NodeBuilder(matrix.graph)
        if x not in self._rounded:
            peak = _peaks(nodes, x)
            rounded = ir.node("DynamicQuantizeLinear", [nodes("Div", x, peak)], num_outputs=3)
            nodes.append(rounded)
            self._rounded[x] = (peak, *rounded.outputs)
        peak, codes, scale, zero = self._rounded[x]
        middle = initializer(matrix.graph, "plain.middle", np.array(128, np.uint8))
        sums = nodes("MatMulInteger", codes, matrix.codes, zero, middle)
        floats = nodes("Cast", sums, to=ir.DataType.FLOAT)
        result = nodes("Mul", floats, nodes("Mul", scale, matrix.row_scales()))
        result = nodes("Mul", result, peak)
        if bias is not None:
            nodes("Add", result, bias)
        return nodes


class StandardMatMulIntegerFormat(MatMulIntegerFormat):
    """The mapped form in operators of the standard."""

    rounding = ""

    def _rows(
        self, nodes: NodeBuilder, matrix: QuantizedWeight, ids: ir.Value, scales: ir.Value
    ) -> None:
        """``(row - 128) · scale``."""
        rows = nodes("Cast", nodes("Gather", matrix.codes, ids), to=ir.DataType.FLOAT)
        middle = initializer(matrix.graph, "table.middle", np.array(128, np.float32))
        nodes("Mul", nodes("Sub", rows, middle), nodes("Gather", scales, ids))

    def _steps(self, nodes: NodeBuilder, x: ir.Value, columns: int) -> tuple[ir.Value, ir.Value]:
        largest = initializer(nodes.graph, "table.largest", np.array(LARGEST, np.float32))
        length = nodes("ReduceL2", x, _last(nodes.graph), keepdims=1)
        in_one = nodes("Div", largest, nodes("Max", length, _tiny(nodes.graph)))
        return nodes("Mul", x, in_one), in_one

    def _scales(self, matrix: QuantizedWeight) -> ir.Value:
        return matrix.row_scales(times=1 / HIGHER_PRECISION)


def _peaks(nodes: NodeBuilder, x: ir.Value) -> ir.Value:
    """The largest magnitude of each token, never zero: ``(…, 1)`` of ``(…, K)``."""
    peak = nodes("ReduceMax", nodes("Abs", x), _last(nodes.graph), keepdims=1)
    return nodes("Max", peak, _tiny(nodes.graph))


def _last(graph: ir.Graph) -> ir.Value:
    return initializer(graph, "plain.last", np.array([-1], np.int64))


def _tiny(graph: ir.Graph) -> ir.Value:
    return initializer(graph, "plain.tiny", np.array(_TINY, np.float32))
