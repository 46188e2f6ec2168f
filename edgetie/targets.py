"""Targets and the quantization schemes for them: tables that a reader can check.

A row of :data:`SCHEMES` is made real in :mod:`edgetie.quantize.formats.scheme_formats`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgetie.errors import EdgetieError, QuantizeError

BLOCK_SIZES = (16, 32, 64)
"""Columns of a row that may share a scale."""

CALIBRATORS = ("minmax", "percentile", "entropy")
"""How ranges of activations are found, by schemes that fix them beforehand."""


@dataclass(frozen=True)
class Scheme:
    """A way to quantize a model.

    Attributes:
        name: what it is called.
        words: what it is.
        precision: as manifests say it.
        layout: what products read: ``packed`` copies that ONNX Runtime makes when a session
            starts, weights where they are ``mapped``, or ``mixed``: the tied table mapped, the
            others packed.
        ranges: bits of activations whose ranges are fixed beforehand, by calibration; 0 where none
            are.
        half: whether activations, and weights that are not quantized, have 16 bits.
        blocks: whether scales are of blocks of a row, not of whole rows.
        block: their size; ``None`` for the scheme's own, 64 with 8 bits and 32 with 4.
    """

    name: str
    words: str
    precision: str
    layout: str
    ranges: int = 0
    half: bool = False
    blocks: bool = False
    block: int | None = None


@dataclass(frozen=True)
class Target:
    """Where a model runs.

    Attributes:
        name: as in ``--target cpu``.
        scheme: to quantize with.
        why: that one.
        fused: whether ``export`` emits ONNX Runtime's own fused operators; compilers for NPUs know
            those of the ONNX standard, at fixed shapes (:func:`edgetie.fix_shapes`).
    """

    name: str
    scheme: str
    why: str
    fused: bool = True


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            "int8",
            "8 bits by blocks of a row, with zero points: MatMulNBits, GatherBlockQuantized",
            "int8",
            "packed",
            blocks=True,
        ),
        Scheme(
            "int8-aliased",
            "the same, the tied table as two entries over the same bytes, for apps that cannot "
            "release a file's pages",
            "int8",
            "packed",
            blocks=True,
        ),
        Scheme(
            "int8-mapped",
            "8 bits by rows, read where the file is mapped: MatMulInteger",
            "int8",
            "mapped",
        ),
        Scheme(
            "int8-mapped-arm",
            "the same, both parts of activations in one product: for ARM, where ONNX Runtime has "
            "no kernel for single rows",
            "int8",
            "mapped",
        ),
        Scheme(
            "int8-mapped-table",
            "the tied table mapped, all other weights as in int8",
            "int8",
            "mixed",
            blocks=True,
        ),
        Scheme(
            "int8-plain",
            "int8-mapped-arm in operators of the ONNX standard: MatMulInteger",
            "int8",
            "mapped",
        ),
        Scheme(
            "int8-dynamic",
            "8 bits by rows in operators of the ONNX standard: DynamicQuantizeLinear, "
            "MatMulInteger; activations of 8 bits by token",
            "int8",
            "mixed",
        ),
        Scheme(
            "int8-static",
            "8 bits by rows, activations of 8 bits with calibrated ranges: QuantizeLinear, "
            "DequantizeLinear",
            "int8",
            "packed",
            ranges=8,
        ),
        Scheme(
            "int8-static16",
            "the same with activations of 16 bits, in front of products and behind them",
            "int8",
            "packed",
            ranges=16,
        ),
        Scheme(
            "int4",
            "layers of 4 bits by blocks, the tied table as in int8",
            "int4",
            "packed",
            blocks=True,
        ),
        Scheme("int4-all", "all weights of 4 bits by blocks", "int4", "packed", blocks=True),
        Scheme(
            "int8-fp16",
            "int8 with activations of 16 bits",
            "int8",
            "packed",
            half=True,
            blocks=True,
        ),
        Scheme(
            "int4-fp16",
            "int4 with activations of 16 bits",
            "int4",
            "packed",
            half=True,
            blocks=True,
        ),
        Scheme("fp16", "nothing quantized, everything of 16 bits", "fp16", "packed", half=True),
    )
}

TARGETS = {
    target.name: target
    for target in (
        Target("cpu", "int8", "the fastest and closest on ONNX Runtime's CPU provider"),
        Target("cuda", "int8-fp16", "both operators exist there, for 16 bits"),
        Target("webgpu", "int8-fp16", "both operators exist in native builds with WebGPU"),
        Target("mobile-cpu", "int8-mapped-arm", "nothing private in memory, ready at once"),
        Target(
            "mobile-npu",
            "int8-static16",
            "what Qualcomm's compiler makes integer products of, without rounding activations much",
            fused=False,
        ),
        Target("openvino", "int8-static", "reads QDQ, lacks GatherBlockQuantized"),
        Target("web", "int8-plain", "each build of onnxruntime-web lacks some other operator"),
    )
}


def find_target(name: str) -> Target:
    """The row called ``name``.

    Raises:
        EdgetieError: if there is none.
    """
    if name not in TARGETS:
        raise EdgetieError(f"--target {name}: unknown; one of {', '.join(TARGETS)}")
    return TARGETS[name]


_BY_FORM = {
    ("packed", 8, False): "int8",
    ("mapped", 8, False): "int8-mapped",
    ("packed", 4, False): "int4",
    ("packed", 8, True): "int8-fp16",
    ("packed", 4, True): "int4-fp16",
}
"""The scheme of a layout and a number of bits, and whether activations have 16."""


def find_scheme(
    target: str = "cpu",
    *,
    scheme: str | None = None,
    layout: str | None = None,
    bits: int | None = None,
    block_size: int | None = None,
) -> Scheme:
    """The scheme of a target, or the one that is asked for.

    Args:
        target: a name of :data:`TARGETS`.
        scheme: a name of :data:`SCHEMES`, instead of the target's.
        layout: ``packed`` or ``mapped``, weight-only, instead of the target's scheme.
        bits: 8 or 4 of a layer's weight, weight-only, instead of the target's scheme; activations
            have 16 bits where they do in that.
        block_size: one of :data:`BLOCK_SIZES`, instead of the scheme's own.

    Raises:
        QuantizeError: if there is no such target or scheme, none of this layout and bits, or none
            with blocks of this size.
    """
    if target not in TARGETS:
        raise QuantizeError(f"--target {target}: unknown; one of {', '.join(TARGETS)}")
    asked = layout is not None or bits is not None
    if scheme is not None and asked:
        raise QuantizeError("--scheme: says layout and bits already; leave out --layout and --bits")
    name = scheme or TARGETS[target].scheme
    if asked:
        own = SCHEMES[name]
        form = layout or "packed", bits or 8, own.half
        if form not in _BY_FORM:
            raise QuantizeError(
                f"--layout {form[0]} --bits {form[1]}: there is no such scheme for {target}; "
                "see edgetie quantize --list-targets"
            )
        if (own.layout, own.precision) != ("mapped", f"int{form[1]}") or own.layout != form[0]:
            name = _BY_FORM[form]
    if name not in SCHEMES:
        raise QuantizeError(f"--scheme {name}: unknown; one of {', '.join(SCHEMES)}")
    found = SCHEMES[name]
    if block_size is None:
        return found
    if not found.blocks:
        raise QuantizeError(f"--block-size: {name} has no blocks; leave it out")
    if block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise QuantizeError(f"--block-size {block_size}: not one of {sizes}")
    return replace(found, block=block_size)
