"""Targets and quantization schemes: tables from which limits, deploy targets and help follow.

:mod:`edgetie.quantize.formats.scheme_formats` turns a row of :data:`SCHEMES` into weight formats.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from edgetie.errors import EdgetieError, QuantizeError

BLOCK_SIZES = (16, 32, 64)
"""How many consecutive weights of an output channel may share a scale."""

CALIBRATORS = ("minmax", "percentile", "entropy")
"""Methods that find the ranges of activations, for schemes with static activation scales."""

_DEVICES = ("python", "c", "node", "android", "ios")
_EVERYWHERE = (*_DEVICES, "web")
# sums of int8-static overflow on x86 processors without VNNI, and onnxruntime-node cannot avoid it
_EXACT = ("python", "c", "android", "ios")
_TEXT, _SPEECH = ("text",), ("text", "speech")
_COSTLY = ("attention", "gated")  # a third of the linear weights, and half the error of 4 bits


class AccuracyLimits(NamedTuple):
    """Default limits of an accuracy check (:class:`edgetie.harness.accuracy.thresholds`)."""

    max_relative_error: float | None
    max_kl: float
    min_top1: float
    max_perplexity_increase: float


@dataclass(frozen=True)
class Scheme:
    """A way to quantize a model.

    Attributes:
        description: what is quantized, and with which operators.
        weights_in_memory: what MatMuls read: ``prepacked`` copies that ONNX Runtime makes when a
            session starts, ``mapped`` weights of the file, or ``mixed``: a mapped embedding only.
        embedding_format, linear_format: formats of embedding tables and of other weights, names of
            :data:`edgetie.quantize.formats.scheme_formats.FORMATS`; ``None`` to quantize nothing.
        embedding_bits, linear_bits: bits of their weights.
        activation_bits: bits of activations with static scales; 0 if none are static.
        float16: whether activations, and weights that are not quantized, are float16.
        limits: default accuracy limits; ``None`` for those of the precision.
        deploy: names of :data:`edgetie.deploy.targets.DEPLOY_TARGETS` whose starters run it.
        benchmarks: benchmarks that measure it: ``text``, ``speech``.
        block_size: how many weights share a scale; ``None`` for 64 with 8 bits and 32 with 4.
        higher_precision: roles of linear layers that have 8 bits, not ``linear_bits``: names of
            :data:`edgetie.quantize.layer_roles.ROLES`.
        rotated: whether layers may read activations that are rotated when the model runs.
        in_checkpoint: whether ``export`` keeps it of quantized checkpoints, and ``quantize`` does
            not make it.
    """

    name: str
    description: str
    weights_in_memory: str = "prepacked"
    embedding_format: str | None = "matmul_nbits"
    linear_format: str | None = "matmul_nbits"
    embedding_bits: int = 8
    linear_bits: int = 8
    activation_bits: int = 0
    float16: bool = False
    limits: AccuracyLimits | None = None
    deploy: tuple[str, ...] = _DEVICES
    benchmarks: tuple[str, ...] = _TEXT
    block_size: int | None = None
    higher_precision: tuple[str, ...] = ()
    rotated: bool = True
    in_checkpoint: bool = False

    @property
    def precision(self) -> str:
        """The precision that manifests record."""
        return "fp16" if self.linear_format is None else f"int{self.linear_bits}"

    @property
    def has_blocks(self) -> bool:
        """Whether blocks of weights share a scale, instead of whole output channels."""
        return self.linear_format == "matmul_nbits"

    @property
    def is_folded(self) -> bool:
        """Whether constants are folded, so that a session may start without optimizing.

        ONNX Runtime's CPU provider reads the weights of some schemes in the mapped file, edgetie's
        those of blocks: their sessions start several times faster then.
        """
        return self.weights_in_memory == "mapped" or self.has_blocks


@dataclass(frozen=True)
class Target:
    """Where a model runs, and which scheme suits it.

    Attributes:
        fused: whether ``export`` emits ONNX Runtime's own fused operators, which compilers for NPUs
            do not accept. These need fixed shapes too (:func:`edgetie.fix_shapes`).
    """

    name: str
    scheme: str
    reason: str
    fused: bool = True


CHECKPOINT = "checkpoint"
"""The scheme of weights that a checkpoint has quantized."""

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            "int8", "8 bits by blocks, with zero points: MatMulNBits, GatherBlockQuantized",
            limits=AccuracyLimits(None, 2e-2, 0.98, 3e-3), benchmarks=_SPEECH,
        ),
        Scheme(
            "int8-mapped", "8 bits by output channels, read from the mapped file: MatMulInteger",
            "mapped", "matmul_integer", "matmul_integer", deploy=_EVERYWHERE, benchmarks=_SPEECH,
        ),
        Scheme(
            "int8-plain", "as int8-mapped, in operators of the ONNX standard: MatMulInteger",
            "mapped", "matmul_integer_standard_merged", "matmul_integer_standard_merged",
            deploy=_EVERYWHERE,
        ),
        Scheme(
            "int8-dynamic", "8 bits by output channels in operators of the ONNX standard: "
            "DynamicQuantizeLinear, MatMulInteger; activations of 8 bits by token",
            "mixed", "matmul_integer_standard", "matmul_integer_dynamic",
            limits=AccuracyLimits(None, 3e-2, 0.95, 1e-2), deploy=_EVERYWHERE, benchmarks=_SPEECH,
        ),
        Scheme(
            "int8-static", "8 bits by output channels, activations of 8 bits with calibrated "
            "ranges: QuantizeLinear, DequantizeLinear",
            "prepacked", "qdq", "qdq", activation_bits=8,
            limits=AccuracyLimits(None, 1e-1, 0.85, 5e-2), deploy=_EXACT, benchmarks=_SPEECH,
        ),
        Scheme(
            "int8-static16", "as int8-static, with inputs and outputs of linear layers of 16 bits",
            "prepacked", "qdq", "qdq", activation_bits=16,
            limits=AccuracyLimits(None, 3e-2, 0.93, 2e-2), deploy=(),
        ),
        Scheme(
            "int4", "linear layers of 4 bits by blocks; those before attention, after gates and "
            "of the tied table as in int8",
            linear_bits=4, limits=AccuracyLimits(None, 3e-1, 0.7, 2e-1), benchmarks=_SPEECH,
            higher_precision=_COSTLY, rotated=False,
        ),
        Scheme("int4-all", "all weights of 4 bits by blocks", embedding_bits=4, linear_bits=4),
        Scheme(
            "int8-fp16", "int8 with float16 activations", float16=True, deploy=(), benchmarks=(),
        ),
        Scheme(
            "int4-fp16", "int4 with float16 activations", linear_bits=4, float16=True, deploy=(),
            benchmarks=(), higher_precision=_COSTLY, rotated=False,
        ),
        Scheme(
            "fp16", "nothing quantized, weights and activations float16", "prepacked", None, None,
            float16=True, limits=AccuracyLimits(1e-2, 1e-3, 0.99, 1e-3), deploy=(),
        ),
        Scheme(
            CHECKPOINT, "integers and scales of a quantized checkpoint, as they are: MatMulNBits, "
            "GatherBlockQuantized",
            limits=AccuracyLimits(None, 2e-2, 0.98, 3e-3), benchmarks=(), in_checkpoint=True,
        ),
    )
}  # fmt: skip

QUANTIZE_SCHEMES = {name: row for name, row in SCHEMES.items() if not row.in_checkpoint}
"""The schemes that ``quantize`` makes."""

TARGETS = {
    target.name: target
    for target in (
        Target(
            "cpu",
            "int8",
            "the most accurate, and faster than fp32; without edgetie's provider, prompts are slow "
            "on x86-64 CPUs without VNNI",
        ),
        Target("cuda", "int8-fp16", "has both operators, for float16"),
        Target("webgpu", "int8-fp16", "has both operators in native builds with WebGPU"),
        Target("mobile-cpu", "int8", "as cpu: edgetie's provider is part of an app too"),
        Target(
            "mobile-npu",
            "int8-static16",
            "Qualcomm's compiler makes integer products of it, and activations lose little",
            fused=False,
        ),
        Target("openvino", "int8-static", "reads QDQ, has no GatherBlockQuantized"),
        Target("web", "int8-plain", "each build of onnxruntime-web lacks some other operator"),
    )
}


def find_target(name: str) -> Target:
    """Return the target called ``name``.

    Raises:
        EdgetieError: if there is none.
    """
    if name not in TARGETS:
        raise EdgetieError(f"unknown; one of {', '.join(TARGETS)}", parameter="target", value=name)
    return TARGETS[name]


def find_scheme(
    target: str = "cpu", *, scheme: str | None = None, block_size: int | None = None
) -> Scheme:
    """Return the scheme called ``scheme``, or the target's, with blocks of ``block_size``.

    Raises:
        EdgetieError: if there is no such target.
        QuantizeError: if there is no such scheme, or none with blocks of this size.
    """
    name = scheme or find_target(target).scheme
    if name not in QUANTIZE_SCHEMES:
        names = ", ".join(QUANTIZE_SCHEMES)
        raise QuantizeError(f"unknown; one of {names}", parameter="scheme", value=name)
    row = QUANTIZE_SCHEMES[name]
    if block_size is None:
        return row
    if not row.has_blocks:
        raise QuantizeError(f"{name} has no blocks; leave it out", parameter="block_size")
    if block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise QuantizeError(f"not one of {sizes}", parameter="block_size", value=block_size)
    return replace(row, block_size=block_size)
