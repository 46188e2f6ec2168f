"""MatMulInteger with operators of the ONNX standard only, for any runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgetie.quantize.formats.matmul_integer import COARSE_LIMIT, FINE_STEPS, MatMulIntegerFormat
from edgetie.quantize.formats.node_builder import NodeBuilder
from edgetie.quantize.formats.weight_format import ScaleGranularity, WeightFormat
from edgetie.quantize.weights.affine import QuantSpec
from edgetie.quantize.weights.quantized_weight import Part, QuantizedWeight

_TINY = 1e-30  # instead of zero, for tokens that are all zeros


class DynamicMatMulIntegerFormat(WeightFormat):
    """8 bits with a scale for each output channel; activations of 8 bits with one for each token.

    Activations are quantized when the model runs, by DynamicQuantizeLinear. ONNX Runtime fuses it
    with MatMulInteger, Cast and Mul on its CPU. It has one scale for a whole tensor, so each token
    is divided by its largest magnitude before. Values are uint8, as x86 processors without VNNI add
    pairs of products of uint8 and int8 in 16 bits, which are too few, and of two uint8 in 32.
    """

    activations = ScaleGranularity.TOKEN
    opset = 18  # ReduceMax with an input for axes

    def __init__(self) -> None:
        self._activations: dict[ir.Value, tuple[ir.Value, Sequence[ir.Value]]] = {}

    def spec(self, in_channels: int) -> QuantSpec:
        return QuantSpec()

    def add_values(self, weight: QuantizedWeight) -> None:
        shape = weight.in_channels, weight.out_channels
        weight.add(Part.VALUES, ir.DataType.UINT8, shape, lambda: weight.read_values().T)

    def gather(self, nodes: NodeBuilder, weight: QuantizedWeight, indices: ir.Value) -> ir.Value:
        raise NotImplementedError  # embeddings have another format

    def matmul(
        self, nodes: NodeBuilder, weight: QuantizedWeight, x: ir.Value, *, exact: bool
    ) -> ir.Value:
        if x not in self._activations:
            largest = nodes("ReduceMax", nodes("Abs", x), _last_axis(nodes), keepdims=1)
            largest = nodes("Max", largest, _tiny(nodes))
            relative = nodes("Div", x, largest)
            quantized = nodes.op_multi_out("DynamicQuantizeLinear", [relative], num_outputs=3)
            self._activations[x] = largest, quantized
        largest, (values, scale, zero_point) = self._activations[x]
        midpoint = nodes.constant("plain.middle", 128, np.uint8)
        sums = nodes("MatMulInteger", values, weight.values, zero_point, midpoint)
        floats = nodes("Cast", sums, to=ir.DataType.FLOAT)
        result = nodes("Mul", floats, nodes("Mul", scale, weight.add_scales()))
        return nodes("Mul", result, largest)


class StandardMatMulIntegerFormat(MatMulIntegerFormat):
    """:class:`MatMulIntegerFormat` with operators of the ONNX standard."""

    quantize_domain = ""

    def _gather_rows(
        self, nodes: NodeBuilder, weight: QuantizedWeight, indices: ir.Value, scales: ir.Value
    ) -> ir.Value:
        """Add ``(row - 128) · scale``."""
        rows = nodes("Cast", nodes("Gather", weight.values, indices), to=ir.DataType.FLOAT)
        centered = nodes("Sub", rows, nodes.constant("table.middle", 128, np.float32))
        return nodes("Mul", centered, nodes("Gather", scales, indices))

    def _scale(
        self, nodes: NodeBuilder, x: ir.Value, in_channels: int
    ) -> tuple[ir.Value, ir.Value]:
        limit = nodes.constant("table.largest", COARSE_LIMIT, np.float32)
        length = nodes("ReduceL2", x, _last_axis(nodes), keepdims=1)
        multiplier = nodes("Div", limit, nodes("Max", length, _tiny(nodes)))
        return nodes("Mul", x, multiplier), multiplier

    def _add_scales(self, weight: QuantizedWeight) -> ir.Value:
        return weight.add_scales(factor=1 / FINE_STEPS)


def _last_axis(nodes: NodeBuilder) -> ir.Value:
    return nodes.constant("plain.last", [-1], np.int64)


def _tiny(nodes: NodeBuilder) -> ir.Value:
    return nodes.constant("plain.tiny", _TINY, np.float32)
