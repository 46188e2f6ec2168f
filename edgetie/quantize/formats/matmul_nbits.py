"""MatMulNBits and GatherBlockQuantized, ONNX Runtime's operators for weight-only quantization.

Both read uint8 values ``(out, blocks, bytes of a block)``, so a tied embedding is one initializer.
"""

import numpy as np
import onnx_ir as ir

from edgetie.graph.constants import MICROSOFT
from edgetie.graph.matching import rank
from edgetie.graph.nodes import Nodes
from edgetie.quantize.formats.block_offsets import add_to_blocks, add_to_product, add_to_rows
from edgetie.quantize.formats.weight_format import WeightFormat
from edgetie.quantize.weights.affine import Array, QuantSpec, choose_block
from edgetie.quantize.weights.quantized_weight import Part, QuantizedWeight
from edgetie.targets import BLOCK_SIZES

_ACCURACY_LEVEL = 4  # activations to int8 inside the kernel; other levels unpack the whole weight
_DEFAULT_BLOCK = {8: 64, 4: 32}
_OPSET_18 = 18  # the first in which Split counts its parts and ReduceMax has an input for axes
_TINY = 1e-30  # instead of zero, for blocks that are all zeros


class MatMulNBitsFormat(WeightFormat):
    """8 or 4 bits with a scale and a zero point for each block.

    Zero points cost a byte for each block and nothing at run time, as MatMulNBits reads unsigned
    values in any case, and reduce the error of 8 bits by a fifth.

    Args:
        bits: of a quantized value.
        block: input channels that share a scale, fewer if that pads less; by default 64 for 8 bits
            and 32 for 4.
        supports_rotation: as in :class:`WeightFormat`.
    """

    opset = 11  # Round

    def __init__(
        self, bits: int = 8, block: int | None = None, *, supports_rotation: bool = True
    ) -> None:
        self.bits, self._requested_block = bits, block
        self.supports_rotation = supports_rotation
        self.block = block or _DEFAULT_BLOCK[bits]

    def spec(self, in_channels: int) -> QuantSpec:
        block = choose_block(in_channels, self.block)
        return QuantSpec(self.bits, block, asymmetric=True, clip=self.bits < 8)

    def higher_precision(self) -> WeightFormat | None:
        """Return 8 bits instead of 4, then the smallest blocks: an eighth more bytes, almost half
        the error.
        """
        if self.bits < 8:
            return MatMulNBitsFormat(
                8, self._requested_block, supports_rotation=self.supports_rotation
            )
        smallest = min(BLOCK_SIZES)
        return MatMulNBitsFormat(8, smallest) if self.block > smallest else None

    def add_values(self, weight: QuantizedWeight) -> None:
        shape = weight.out_channels, weight.block_count, self._block_bytes(weight)

        def packed() -> Array:
            return self._pack(weight.read_values()).reshape(shape)

        weight.add(Part.VALUES, ir.DataType.UINT8, shape, packed)

    def gather(self, nodes: Nodes, weight: QuantizedWeight, indices: ir.Value) -> ir.Value:
        """Add GatherBlockQuantized and a Reshape that joins the blocks of a row."""
        block, axis = _block(weight), rank(indices)
        scales, zero_points = self._parameters_for_gather(weight)
        gathered = nodes(
            "GatherBlockQuantized",
            weight.values,
            indices,
            scales,
            zero_points,
            domain=MICROSOFT,
            gather_axis=0,
            quantize_axis=2,
            block_size=block,
            bits=self.bits,
        )
        if weight.has_offsets:
            gathered = add_to_rows(nodes, weight, indices, gathered)
        return _join_blocks(nodes, gathered, weight, axis)

    @property
    def can_dequantize(self) -> bool:
        return self.bits == 8

    def dequantize(self, nodes: Nodes, weight: QuantizedWeight) -> ir.Value:
        """Add DequantizeLinear of all blocks, as rows, and a Reshape that joins them."""
        count, copy = weight.out_channels * weight.block_count, weight.count_copy()
        scales, zero_points = weight.add_scales(weight.block_count), self._add_zero_points(weight)
        floats = nodes(
            "DequantizeLinear",
            weight.add_alias(Part.VALUES, weight.values, [count, _block(weight)], copy=copy),
            weight.add_alias(Part.SCALES, scales, [count], copy=copy),
            weight.add_alias(Part.ZERO_POINTS, zero_points, [count], copy=copy),
            axis=0,
        )
        if weight.has_offsets:
            floats = add_to_blocks(nodes, weight, floats, copy)
        return _join_blocks(nodes, floats, weight)

    def _parameters_for_gather(self, weight: QuantizedWeight) -> tuple[ir.Value, ir.Value]:
        """Return scales and zero points ``(out, blocks, 1)``."""
        blocks = weight.block_count
        last = weight.out_channels, blocks, 1
        scales = weight.add_alias(Part.SCALES_FOR_GATHER, weight.add_scales(blocks), last)
        part = Part.ZERO_POINTS_FOR_GATHER
        if self.bits == 8:
            zero_points = weight.add_alias(part, self._add_zero_points(weight), last)
        else:  # those of 4 bits are one in a byte here
            zero_points = weight.add(
                part, ir.DataType.UINT8, last, lambda: weight.parameters().zero_points[..., None]
            )
        return scales, zero_points

    def matmul(self, nodes: Nodes, weight: QuantizedWeight, x: ir.Value, exact: bool) -> ir.Value:
        """Add MatMulNBits; if activations must hardly be rounded, over two parts of them."""
        axis = rank(x) - 2
        exact = exact and axis >= 0 and weight.in_channels % _block(weight) == 0
        result = nodes(
            "MatMulNBits",
            _split_activation(nodes, x, weight) if exact else x,
            weight.values,
            weight.add_scales(weight.block_count),
            self._add_zero_points(weight),
            domain=MICROSOFT,
            K=weight.in_channels,
            N=weight.out_channels,
            bits=self.bits,
            block_size=_block(weight),
            accuracy_level=_ACCURACY_LEVEL,
        )
        if exact:
            attributes = {"axis": axis} | ({"num_outputs": 2} if _has_opset_18(weight) else {})
            halves = nodes.op_multi_out("Split", [result], attributes, num_outputs=2)
            result = nodes("Add", *halves)
        return add_to_product(nodes, weight, x, result) if weight.has_offsets else result

    def _add_zero_points(self, weight: QuantizedWeight) -> ir.Value:
        """Return the zero points; those of 4 bits two in a byte, each output channel padded."""
        shape = weight.out_channels, -(-weight.block_count * self.bits // 8)

        def packed() -> Array:
            return self._pack(weight.parameters().zero_points)

        return weight.add(Part.ZERO_POINTS, ir.DataType.UINT8, shape, packed)

    def _pack(self, values: Array) -> Array:
        """Store two values of 4 bits in a byte, the first in its lower half."""
        if self.bits == 8:
            return values
        values = np.pad(values, [(0, 0), (0, values.shape[1] % 2)])
        return np.asarray(values[:, ::2] | values[:, 1::2] << 4)

    def _block_bytes(self, weight: QuantizedWeight) -> int:
        return _block(weight) * self.bits // 8


def _join_blocks(
    nodes: Nodes, blocks: ir.Value, weight: QuantizedWeight, axis: int | None = None
) -> ir.Value:
    """Join the blocks of rows and leave out what pads them.

    Args:
        blocks: the rows ``(…, blocks, block)``, or all blocks of the weight.
        axis: the axis of the blocks; ``None`` for all of the weight.
    """
    width = weight.block_count * _block(weight)
    leading = [weight.out_channels] if axis is None else [0] * axis
    name = "_".join(map(str, [*leading, width]))
    joined = nodes(
        "Reshape", blocks, nodes.integers(f"matmul_nbits.rows.{name}", [*leading, width])
    )
    if width == weight.in_channels:
        return joined
    limits = ("column", 0), ("column", weight.in_channels), ("axis", len(leading))
    inputs = [nodes.integers(f"matmul_nbits.{name}.{n}", [n]) for name, n in limits]
    return nodes("Slice", joined, *inputs)


def _split_activation(nodes: Nodes, x: ir.Value, weight: QuantizedWeight) -> ir.Value:
    """Concatenate ``x`` as MatMulNBits rounds it and, as further tokens, the remainder.

    The operator rounds activations to int8 by blocks, in units of the largest magnitude over 127.
    The remainder is 254 times smaller, and so is the error of rounding it.
    """
    axes, columns = rank(x), weight.in_channels
    shape = [0] * (axes - 1) + [weight.block_count, _block(weight)]
    blocks = nodes("Reshape", x, nodes.integers(f"matmul_nbits.blocks.{axes}.{columns}", shape))
    magnitudes, last = nodes("Abs", blocks), nodes.integers("matmul_nbits.last_axis", [-1])
    largest = (
        nodes("ReduceMax", magnitudes, last, keepdims=1)
        if _has_opset_18(weight)
        else nodes("ReduceMax", magnitudes, axes=[-1], keepdims=1)
    )
    unit = nodes("Mul", largest, nodes.constant("matmul_nbits.unit", 1 / 127, np.float32))
    unit = nodes("Max", unit, nodes.constant("matmul_nbits.tiny", _TINY, np.float32))
    rounded = nodes("Mul", nodes("Round", nodes("Div", blocks, unit)), unit)
    whole = [0] * (axes - 1) + [columns]
    whole_shape = nodes.integers(f"matmul_nbits.whole.{axes}.{columns}", whole)
    joined = nodes("Reshape", rounded, whole_shape)
    return nodes("Concat", joined, nodes("Sub", x, joined), axis=axes - 2)


def _block(weight: QuantizedWeight) -> int:
    assert weight.spec.block is not None
    return weight.spec.block


def _has_opset_18(weight: QuantizedWeight) -> bool:
    return weight.graph.opset_imports.get("", 1) >= _OPSET_18
