"""The forms that matrices take in each scheme."""

from __future__ import annotations

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

_FORMS: dict[str, Callable[[int | None, Ranges], tuple[WeightFormat, WeightFormat]]] = {
    "int8": lambda block, _: (MatMulNBitsFormat(8, block), MatMulNBitsFormat(8, block)),
    "int8-aliased": lambda block, _: (
        MatMulNBitsFormat(8, block, aliased=True),
        MatMulNBitsFormat(8, block),
    ),
    "int8-mapped": lambda *_: (MatMulIntegerFormat(), MatMulIntegerFormat()),
    "int8-mapped-arm": lambda *_: (
        MatMulIntegerFormat(apart=False),
        MatMulIntegerFormat(apart=False),
    ),
    "int8-mapped-table": lambda block, _: (MatMulIntegerFormat(), MatMulNBitsFormat(8, block)),
    "int8-plain": lambda *_: (
        StandardMatMulIntegerFormat(apart=False),
        StandardMatMulIntegerFormat(apart=False),
    ),
    "int8-dynamic": lambda *_: (StandardMatMulIntegerFormat(), DynamicMatMulIntegerFormat()),
    "int8-static": lambda _, ranges: (QdqFormat(8, ranges, table=True), QdqFormat(8, ranges)),
    "int8-static16": lambda _, ranges: (QdqFormat(16, ranges, table=True), QdqFormat(16, ranges)),
    "int4": lambda block, _: (MatMulNBitsFormat(8, block), MatMulNBitsFormat(4, block)),
    "int4-all": lambda block, _: (MatMulNBitsFormat(4, block), MatMulNBitsFormat(4, block)),
    "int8-fp16": lambda block, _: (MatMulNBitsFormat(8, block), MatMulNBitsFormat(8, block)),
    "int4-fp16": lambda block, _: (MatMulNBitsFormat(8, block), MatMulNBitsFormat(4, block)),
}


def weight_formats(
    scheme: Scheme, ranges: Ranges | None = None
) -> tuple[WeightFormat, WeightFormat] | None:
    """New forms: of matrices that rows are looked up in, and of all others; ``None`` where all stay
    in floating point.

    Args:
        scheme: as :func:`edgetie.targets.find_scheme` gives it.
        ranges: around the product with each matrix, by its name, where they are fixed.
    """
    made = _FORMS.get(scheme.name)
    return made(scheme.block, ranges or {}) if made is not None else None
