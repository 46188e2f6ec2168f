"""The forms that matrices take in each scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgetie.quantize.forms import Form
from edgetie.quantize.mapped import Mapped
from edgetie.quantize.packed import Packed
from edgetie.quantize.plain import Dynamic, Plain
from edgetie.quantize.ranges import Fixed
from edgetie.quantize.static import Static
from edgetie.targets import Scheme

Ranges = Mapping[str, Fixed]

_FORMS: dict[str, Callable[[Ranges], tuple[Form, Form]]] = {
    "int8": lambda _: (Packed(8), Packed(8)),
    "int8-aliased": lambda _: (Packed(8, aliased=True), Packed(8)),
    "int8-mapped": lambda _: (Mapped(), Mapped()),
    "int8-mapped-table": lambda _: (Mapped(), Packed(8)),
    "int8-plain": lambda _: (Plain(), Plain()),
    "int8-dynamic": lambda _: (Plain(), Dynamic()),
    "int8-static": lambda ranges: (Static(8, ranges, table=True), Static(8, ranges)),
    "int8-static16": lambda ranges: (Static(16, ranges, table=True), Static(16, ranges)),
    "int4": lambda _: (Packed(8), Packed(4)),
    "int4-all": lambda _: (Packed(4), Packed(4)),
    "int8-fp16": lambda _: (Packed(8), Packed(8)),
    "int4-fp16": lambda _: (Packed(8), Packed(4)),
}


def forms(scheme: Scheme, ranges: Ranges | None = None) -> tuple[Form, Form] | None:
    """New forms: of matrices that rows are looked up in, and of all others; ``None`` where all stay
    in floating point.

    Args:
        scheme: a row of :data:`edgetie.targets.SCHEMES`.
        ranges: around the product with each matrix, by its name, where they are fixed.
    """
    made = _FORMS.get(scheme.name)
    return made(ranges or {}) if made is not None else None
