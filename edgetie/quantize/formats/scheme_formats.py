"""The weight formats of each quantization scheme."""

from collections.abc import Callable, Mapping

from edgetie.quantize.formats.matmul_integer import MatMulIntegerFormat
from edgetie.quantize.formats.matmul_integer_standard import (
    DynamicMatMulIntegerFormat,
    StandardMatMulIntegerFormat,
)
from edgetie.quantize.formats.matmul_nbits import MatMulNBitsFormat
from edgetie.quantize.formats.qdq import LinearOpRanges, QdqFormat
from edgetie.quantize.formats.weight_format import WeightFormat
from edgetie.targets import Scheme

Ranges = Mapping[str, LinearOpRanges]

FORMATS: dict[str, Callable[[int, Scheme, Ranges, bool], WeightFormat]] = {
    "matmul_nbits": lambda bits, scheme, _, embedding: MatMulNBitsFormat(
        bits, scheme.block_size, supports_rotation=embedding or scheme.rotated
    ),
    "matmul_integer": lambda *_: MatMulIntegerFormat(),
    "matmul_integer_standard": lambda *_: StandardMatMulIntegerFormat(),
    "matmul_integer_standard_merged": lambda *_: StandardMatMulIntegerFormat(split_matmuls=False),
    "matmul_integer_dynamic": lambda *_: DynamicMatMulIntegerFormat(),
    "qdq": lambda _, scheme, ranges, embedding: QdqFormat(
        scheme.activation_bits, ranges, embedding=embedding
    ),
}
"""Formats by the names in :data:`edgetie.targets.SCHEMES`. Arguments: bits of a weight, scheme,
ranges of activations, whether it is for embeddings."""


def weight_formats(
    scheme: Scheme, ranges: Ranges | None = None
) -> tuple[WeightFormat, WeightFormat] | None:
    """Create the formats of embeddings and of all other weights; ``None`` if all stay float.

    Args:
        scheme: as :func:`edgetie.targets.find_scheme` returns it.
        ranges: of each linear operator, by the name of its weight, if they are fixed.
    """
    if scheme.embedding_format is None or scheme.linear_format is None:
        return None
    ranges = ranges or {}
    return (
        FORMATS[scheme.embedding_format](scheme.embedding_bits, scheme, ranges, True),
        FORMATS[scheme.linear_format](scheme.linear_bits, scheme, ranges, False),
    )


def oldest_opset(scheme: Scheme) -> int:
    """The oldest opset with all operators of a scheme's formats."""
    formats = weight_formats(scheme) or ()
    higher = (each.higher_precision() for each in formats)
    return max((each.opset for each in (*formats, *higher) if each is not None), default=1)
