"""QuantizeLinear and DequantizeLinear around MatMuls (QDQ), for compilers of integer graphs.

Activations have one fixed scale and zero point for each tensor. With 16 bits, the output of a
MatMul is quantized too: only then do NPUs run it as one operator, with weights as they are stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgetie.graph.nodes import Nodes
from edgetie.quantize.formats.weight_format import ScaleGranularity, WeightFormat
from edgetie.quantize.weights.affine import Array
from edgetie.quantize.weights.quantized_weight import Part, QuantizedWeight

Range = tuple[float, float]

_MARGIN = 1.5  # with 16 bits: there are many values, and other texts have larger activations
_SMALLEST_SCALE = 1e-12


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
        ranges: of each linear operator, by the name of its weight.
        embedding: whether Gathers read the weights, which stay ``(out, in)``.
    """

    supports_subgraphs = False  # DequantizeLinear needs its weights in the subgraph itself

    def __init__(
        self, bits: int, ranges: Mapping[str, LinearOpRanges], *, embedding: bool = False
    ) -> None:
        self.ranges, self.embedding = ranges, embedding
        self.activations = ScaleGranularity.TENSOR if bits == 8 else ScaleGranularity.NONE
        self.supports_rotation = bits == 8  # a real model's rotations did not fit QNN's simulator
        self.opset = 13 if bits == 8 else 21  # DequantizeLinear along an axis; uint16
        self._dtype = np.dtype(f"uint{bits}")
        self._margin = 1.0 if bits == 8 else _MARGIN
        self._activations: dict[ir.Value, ir.Value] = {}

    def add_values(self, weight: QuantizedWeight) -> None:
        def values() -> Array:
            signed = (weight.read_values() ^ np.uint8(128)).view(np.int8)
            return signed if self.embedding else signed.T

        weight.add(Part.VALUES, ir.DataType.INT8, self._shape(weight), values)

    def _shape(self, weight: QuantizedWeight) -> tuple[int, int]:
        shape = weight.out_channels, weight.in_channels
        return shape if self.embedding else shape[::-1]

    def gather(self, nodes: Nodes, weight: QuantizedWeight, indices: ir.Value) -> ir.Value:
        """Add ``row · scale``."""
        embeddings = nodes.cast(nodes("Gather", weight.values, indices), ir.DataType.FLOAT)
        scales = weight.add_scales(1, part=Part.SCALES_FOR_GATHER)
        return nodes("Mul", embeddings, nodes("Gather", scales, indices))

    def matmul(self, nodes: Nodes, weight: QuantizedWeight, x: ir.Value, exact: bool) -> ir.Value:
        ranges = self.ranges.get(weight.name)
        if x not in self._activations and ranges is not None:
            self._activations[x] = self._quantize(nodes, f"{weight.label}.input", x, ranges.input)
        values, zero_points = self._copy(weight)
        if self.embedding:
            values = nodes("Transpose", values, perm=[1, 0])
        floats = nodes("DequantizeLinear", values, weight.add_scales(), zero_points, axis=1)
        result = nodes("MatMul", self._activations.get(x, x), floats)
        if ranges is None or ranges.output is None:
            return result
        return self._quantize(nodes, f"{weight.label}.output", result, ranges.output)

    def dequantize(self, nodes: Nodes, weight: QuantizedWeight) -> ir.Value:
        values, zero_points = self._copy(weight)
        inputs = values, weight.add_scales(), zero_points
        if self.embedding:
            return nodes("DequantizeLinear", *inputs, axis=0)
        return nodes.transpose(nodes("DequantizeLinear", *inputs, axis=1))

    def _copy(self, weight: QuantizedWeight) -> tuple[ir.Value, ir.Value]:
        """Return values and zero points, which some runtimes take for uint8 if they are left out.

        Each MatMul has separate initializers over the same bytes: ONNX Runtime changes what a
        DequantizeLinear reads, and fails if two read the same.
        """
        copy, shape = weight.count_copy() - 1, (weight.out_channels,)
        zeros = weight.add(
            Part.ZERO_POINTS, ir.DataType.INT8, shape, lambda: np.zeros(shape, np.int8)
        )
        if not copy:
            return weight.values, zeros
        values = weight.add_alias(Part.VALUES, weight.values, self._shape(weight), copy=copy)
        return values, weight.add_alias(Part.ZERO_POINTS, zeros, shape, copy=copy)

    def _quantize(self, nodes: Nodes, name: str, x: ir.Value, limits: Range) -> ir.Value:
        """Quantize and dequantize an activation with a fixed scale. Zero stays exact."""
        low, high = min(limits[0], 0.0) * self._margin, max(limits[1], 0.0) * self._margin
        largest = np.iinfo(self._dtype).max
        step = max((high - low) / largest, _SMALLEST_SCALE)
        middle = np.clip(round(-low / step), 0, largest)
        scale = nodes.constant(f"{name}.scale", step, np.float32)
        zero_point = nodes.constant(f"{name}.zero_point", middle, self._dtype)
        quantized = nodes("QuantizeLinear", x, scale, zero_point)
        return nodes("DequantizeLinear", quantized, scale, zero_point)
