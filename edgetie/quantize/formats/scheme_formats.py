"""The forms that matrices take in each scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgetie.quantize.calibration.activation_ranges import Fixed
from edgetie.quantize.formats.matmul_integer import Mapped
from edgetie.quantize.formats.matmul_integer_standard import Dynamic, Plain
from edgetie.quantize.formats.matmul_nbits import Packed
from edgetie.quantize.formats.qdq import Static
from edgetie.quantize.formats.weight_format import Form
from edgetie.targets import Scheme

Ranges = Mapping[str, Fixed]

_FORMS: dict[str, Callable[[int | None, Ranges], tuple[Form, Form]]] = {
    "int8": lambda block, _: (Packed(8, block), Packed(8, block)),
    "int8-aliased": lambda block, _: (Packed(8, block, aliased=True), Packed(8, block)),
    "int8-mapped": lambda *_: (Mapped(), Mapped()),
    "int8-mapped-arm": lambda *_: (Mapped(apart=False), Mapped(apart=False)),
    "int8-mapped-table": lambda block, _: (Mapped(), Packed(8, block)),
    "int8-plain": lambda *_: (Plain(apart=False), Plain(apart=False)),
    "int8-dynamic": lambda *_: (Plain(), Dynamic()),
    "int8-static": lambda _, ranges: (Static(8, ranges, table=True), Static(8, ranges)),
    "int8-static16": lambda _, ranges: (Static(16, ranges, table=True), Static(16, ranges)),
    "int4": lambda block, _: (Packed(8, block), Packed(4, block)),
    "int4-all": lambda block, _: (Packed(4, block), Packed(4, block)),
    "int8-fp16": lambda block, _: (Packed(8, block), Packed(8, block)),
    "int4-fp16": lambda block, _: (Packed(8, block), Packed(4, block)),
}


def forms(scheme: Scheme, ranges: Ranges | None = None) -> tuple[Form, Form] | None:
    """New forms: of matrices that rows are looked up in, and of all others; ``None`` where all stay
    in floating point.

    Args:
        scheme: as :func:`edgetie.targets.find_scheme` gives it.
        ranges: around the product with each matrix, by its name, where they are fixed.
    """
    made = _FORMS.get(scheme.name)
    return made(scheme.block, ranges or {}) if made is not None else None
