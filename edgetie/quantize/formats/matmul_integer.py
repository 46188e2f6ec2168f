"""MatMulInteger over int8 weights that are read where the file is mapped.

ONNX Runtime does not copy weights of three axes, ``(1, in, out)``, when a session starts. So it is
ready at once, and processes share the pages. A token of an embedding is a column of these bytes.

Activations become two values of seven bits each, coarse and fine, with a scale for each token. On
x86 each has a MatMul if a weight is large: kernels there multiply one token with a weight in place,
but not several, and have no zero points, so what unsigned values add is computed beforehand. Small
weights are copied, and both parts are tokens of one MatMul. Processors without VNNI add pairs of
products of uint8 and int8 in 16 bits: with seven bits, 127 · 128 · 2, they fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgetie.graph.constants import MICROSOFT
from edgetie.graph.matching import rank
from edgetie.graph.nodes import Nodes
from edgetie.quantize.formats.weight_format import ScaleGranularity, WeightFormat
from edgetie.quantize.weights.affine import Array
from edgetie.quantize.weights.quantized_weight import Part, QuantizedWeight

COARSE_LIMIT = 64
"""Largest coarse value, and its zero point: shifted values are 128 at most."""

FINE_STEPS = 85
"""Fine values in one coarse value, and their zero point: half a coarse value is 128 at most."""

_LARGE = 1 << 21  # bytes that take longer to copy than a second MatMul takes to start
_TINY = 1e-30  # added to a mean of squares: tokens may be all zeros
_SMALLEST_BLOCK = 16  # of GatherBlockQuantized


@dataclass
class _SplitActivation:
    """An activation as coarse and fine values, both as one, and a zero that is not constant."""

    parts: Sequence[ir.Value]
    multiplier: ir.Value
    concatenated: ir.Value | None = None
    zero_point: ir.Value | None = None


class MatMulIntegerFormat(WeightFormat):
    """8 bits with a scale for each output channel, read in place.

    Args:
        split_matmuls: give both parts of activations a MatMul each if weights are large.
    """

    activations = ScaleGranularity.NONE  # they are hardly rounded
    opset = 18  # Split into a number of parts, ReduceL2 with an input for axes
    quantize_domain = MICROSOFT  # ONNX Runtime finds its kernels sooner than the standard's

    def __init__(self, *, split_matmuls: bool = True) -> None:
        self.split_matmuls = split_matmuls
        self._activations: dict[ir.Value, _SplitActivation] = {}

    def supports_input(self, x: ir.Value) -> bool:
        return rank(x) > 1

    def add_values(self, weight: QuantizedWeight) -> None:
        """Add values ``(1, in, out)``, or ``(out, in)`` if only Gathers read them: a token is one
        page then, not many.
        """
        if not weight.in_linear_op:
            shape = weight.out_channels, weight.in_channels
            weight.add(Part.VALUES, ir.DataType.UINT8, shape, weight.read_values)
            return
        weight.needs_sums = True
        weight.add(
            Part.VALUES,
            ir.DataType.INT8,
            (1, weight.in_channels, weight.out_channels),
            lambda: (weight.read_values().T ^ np.uint8(128)).view(np.int8)[None],
        )

    def gather(self, nodes: Nodes, weight: QuantizedWeight, indices: ir.Value) -> ir.Value:
        scales = weight.add_scales(1, part=Part.SCALES_FOR_GATHER)
        if not weight.in_linear_op:
            return self._gather_embeddings(nodes, weight.values, indices, scales)
        columns = nodes("Gather", weight.values, indices, axis=2)
        columns = nodes("Squeeze", columns, nodes.integers("matmul_integer.first_axis", [0]))
        embeddings = nodes("Transpose", columns, perm=[*range(1, rank(indices) + 1), 0])
        return nodes(
            "Mul", nodes.cast(embeddings, ir.DataType.FLOAT), nodes("Gather", scales, indices)
        )

    def _gather_embeddings(self, nodes: Nodes, *inputs: ir.Value) -> ir.Value:
        """Add GatherBlockQuantized of values, indices and scales."""
        assert inputs[0].shape is not None
        width = inputs[0].shape.numpy()[1]
        return nodes(
            "GatherBlockQuantized",
            *inputs,
            domain=MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            block_size=max(_SMALLEST_BLOCK, 1 << (width - 1).bit_length()),  # covers a row
            bits=8,
        )

    def dequantize(self, nodes: Nodes, weight: QuantizedWeight) -> ir.Value:
        copy, shape = weight.count_copy(), (weight.out_channels, weight.in_channels)
        shape = shape[::-1] if weight.in_linear_op else shape
        scales = weight.add_scales(1, part=Part.SCALES_FOR_GATHER)
        inputs = [
            weight.add_alias(Part.VALUES, weight.values, shape, copy=copy),
            weight.add_alias(Part.SCALES_FOR_GATHER, scales, [weight.out_channels], copy=copy),
        ]
        if weight.in_linear_op:
            return nodes.transpose(nodes("DequantizeLinear", *inputs, axis=1))
        return nodes("DequantizeLinear", *inputs, weight.add_midpoints(), axis=0)

    def matmul(self, nodes: Nodes, weight: QuantizedWeight, x: ir.Value, exact: bool) -> ir.Value:
        """Add ``85 (W · coarse) + W · fine`` and its scales."""
        if x not in self._activations:
            scaled, multiplier = self._scale(nodes, x, weight.in_channels)
            self._activations[x] = _SplitActivation(self._split(nodes, scaled), multiplier)
        activation = self._activations[x]
        fine_steps = nodes.constant("matmul_integer.fine_steps", FINE_STEPS, np.float32)
        size = weight.out_channels * weight.in_channels
        split = self.split_matmuls and size >= _LARGE
        zero_point = _zero_point(nodes, activation) if split or weight.uses > 1 else None
        if not split and activation.concatenated is None:
            activation.concatenated = nodes("Concat", *activation.parts, axis=-2)
        results = [
            nodes("MatMulInteger", part, weight.values, None, zero_point)
            for part in (activation.parts if split else [activation.concatenated])
        ]
        if not split:
            attributes = {"axis": -2, "num_outputs": 2}
            results = [*nodes.op_multi_out("Split", results, attributes, num_outputs=2)]

        def offsets() -> Array:  # what the zero points of both parts add, negated
            return weight.sums() * np.float32(-(COARSE_LIMIT * FINE_STEPS + FINE_STEPS))

        sums = nodes(
            "Sum",
            nodes("DequantizeLinear", results[0], fine_steps, domain=self.quantize_domain),
            nodes.cast(results[1], ir.DataType.FLOAT),
            weight.add(Part.OFFSETS, ir.DataType.FLOAT, [weight.out_channels], offsets),
        )
        result = nodes("Div", sums, activation.multiplier)
        result = nodes("Mul", result, self._add_scales(weight))
        if rank(x) > 2:
            return result
        return nodes("Squeeze", result, nodes.integers("matmul_integer.first_axis", [0]))

    def _scale(self, nodes: Nodes, x: ir.Value, in_channels: int) -> tuple[ir.Value, ir.Value]:
        """Scale ``x`` by the root of each token's sum of squares, so that no value is above 64.

        Returns the multiplier too, except for a constant that :meth:`_add_scales` applies.
        """
        gain = np.full(in_channels, COARSE_LIMIT / np.sqrt(in_channels))
        inputs = [x, nodes.constant(f"matmul_integer.gains.{in_channels}", gain, np.float32)]
        attributes = {"axis": -1, "epsilon": _TINY}
        scaled, multiplier = nodes.op_multi_out(
            "SimplifiedLayerNormalization", inputs, attributes, num_outputs=2
        )
        return scaled, multiplier

    def _split(self, nodes: Nodes, scaled: ir.Value) -> list[ir.Value]:
        """Add both parts as uint8 values."""
        coarse = nodes("Round", scaled)
        fine = nodes("Sub", scaled, coarse)
        parts = []
        for part, steps, zero in ((coarse, 1, COARSE_LIMIT), (fine, FINE_STEPS, FINE_STEPS)):
            step = nodes.constant(f"matmul_integer.step.{steps}", 1 / steps, np.float32)
            zero_point = nodes.constant(f"matmul_integer.zero_point.{steps}", zero, np.uint8)
            inputs = part, step, zero_point
            parts.append(nodes("QuantizeLinear", *inputs, domain=self.quantize_domain))
        return parts

    def _add_scales(self, weight: QuantizedWeight) -> ir.Value:
        factor = float(np.sqrt(weight.in_channels)) / (COARSE_LIMIT * FINE_STEPS)
        return weight.add_scales(factor=factor)


def _zero_point(nodes: Nodes, activation: _SplitActivation) -> ir.Value:
    """Add the zero point of weights, 0, as a result that constant folding cannot compute.

    With a constant and ``session.x64quantprecision``, ONNX Runtime would make a uint8 copy of a
    weight for each MatMul, and fail at the second, as both have one name.
    """
    if activation.zero_point is None:
        least = nodes("ReduceMin", activation.multiplier, keepdims=0)
        is_less = nodes("Less", least, least)
        activation.zero_point = nodes("Cast", is_less, to=ir.DataType.INT8)
    return activation.zero_point
