"""MatMulInteger with operators of the ONNX standard only, for any runtime."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgetie.graph.nodes import Nodes
from edgetie.quantize.formats.matmul_integer import COARSE_LIMIT, FINE_STEPS, MatMulIntegerFormat
from edgetie.quantize.formats.weight_format import ScaleGranularity, WeightFormat
from edgetie.quantize.weights.quantized_weight import Part, QuantizedWeight

_TINY = 1e-30  # instead of zero, for tokens that are all zeros


class DynamicMatMulIntegerFormat(WeightFormat):
    """8 bits with a scale for each output channel; activations of 8 bits with one for each token.

    DynamicQuantizeLinear, which ONNX Runtime's CPU fuses with MatMulInteger, Cast and Mul, has one
    scale for a whole tensor, so each token is divided by its largest magnitude before. Values are
    uint8, as x86 processors without VNNI add pairs of products of uint8 and int8 in 16 bits only.
    """

    activations = ScaleGranularity.TOKEN
    opset = 18  # ReduceMax with an input for axes

    def __init__(self) -> None:
        self._activations: dict[ir.Value, tuple[ir.Value, Sequence[ir.Value]]] = {}

    def add_values(self, weight: QuantizedWeight) -> None:
        shape = weight.in_channels, weight.out_channels
        weight.add(Part.VALUES, ir.DataType.UINT8, shape, lambda: weight.read_values().T)

    def matmul(self, nodes: Nodes, weight: QuantizedWeight, x: ir.Value, exact: bool) -> ir.Value:
        if x not in self._activations:
            largest = _reduce(nodes, "ReduceMax", nodes("Abs", x))
            relative = nodes("Div", x, largest)
            quantized = nodes.op_multi_out("DynamicQuantizeLinear", [relative], num_outputs=3)
            self._activations[x] = largest, quantized
        largest, (values, scale, zero_point) = self._activations[x]
        midpoint = nodes.constant("matmul_integer.midpoint", 128, np.uint8)
        sums = nodes("MatMulInteger", values, weight.values, zero_point, midpoint)
        result = nodes(
            "Mul", nodes.cast(sums, ir.DataType.FLOAT), nodes("Mul", scale, weight.add_scales())
        )
        return nodes("Mul", result, largest)

    def dequantize(self, nodes: Nodes, weight: QuantizedWeight) -> ir.Value:
        shape, copy = (weight.in_channels, weight.out_channels), weight.count_copy()
        values = weight.add_alias(Part.VALUES, weight.values, shape, copy=copy)
        inputs = values, weight.add_scales(), weight.add_midpoints()
        return nodes.transpose(nodes("DequantizeLinear", *inputs, axis=1))


class StandardMatMulIntegerFormat(MatMulIntegerFormat):
    """:class:`MatMulIntegerFormat` with operators of the ONNX standard."""

    quantize_domain = ""

    def _gather_embeddings(self, nodes: Nodes, *inputs: ir.Value) -> ir.Value:
        """Add ``(row - 128) · scale`` of values, indices and scales."""
        values, indices, scales = inputs
        embeddings = nodes.cast(nodes("Gather", values, indices), ir.DataType.FLOAT)
        centered = nodes("Sub", embeddings, nodes.constant("gather.midpoint", 128, np.float32))
        return nodes("Mul", centered, nodes("Gather", scales, indices))

    def _scale(self, nodes: Nodes, x: ir.Value, in_channels: int) -> tuple[ir.Value, ir.Value]:
        limit = nodes.constant("matmul_integer.coarse_limit", COARSE_LIMIT, np.float32)
        multiplier = nodes("Div", limit, _reduce(nodes, "ReduceL2", x))
        return nodes("Mul", x, multiplier), multiplier

    def _add_scales(self, weight: QuantizedWeight) -> ir.Value:
        return weight.add_scales(factor=1 / FINE_STEPS)


def _reduce(nodes: Nodes, op_type: str, x: ir.Value) -> ir.Value:
    """Add a reduction over the channels of each token, and replace zero by a tiny value."""
    reduced = nodes(op_type, x, nodes.integers("matmul_integer.last_axis", [-1]), keepdims=1)
    return nodes("Max", reduced, nodes.constant("matmul_integer.tiny", _TINY, np.float32))
