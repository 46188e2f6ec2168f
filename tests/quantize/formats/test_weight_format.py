"""The node list of weight formats and what formats share."""

from __future__ import annotations

import onnx_ir as ir

from edgetie.quantize.formats.matmul_nbits import MatMulNBitsFormat
from edgetie.quantize.formats.qdq import QdqFormat
from edgetie.quantize.formats.weight_format import WeightFormat
from edgetie.quantize.weights.affine import QuantSpec


def test_defaults_are_whole_output_channels_of_8_bits() -> None:
    weight_format: WeightFormat = QdqFormat(8, {})
    assert weight_format.spec(100) == QuantSpec(8)
    assert weight_format.higher_precision() is None
    assert weight_format.supports_input(ir.Value(name="v"))


def test_higher_precision_ends_with_the_smallest_blocks() -> None:
    chain = []
    weight_format: WeightFormat | None = MatMulNBitsFormat(4)
    while weight_format is not None:
        assert isinstance(weight_format, MatMulNBitsFormat)
        chain.append((weight_format.bits, weight_format.block))
        weight_format = weight_format.higher_precision()
    assert chain == [(4, 32), (8, 64), (8, 16)]
