"""What an accuracy check must reach to pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx

from edgetie.bundle.bundle import Bundle
from edgetie.errors import EdgetieError
from edgetie.graph.structure import read_proto
from edgetie.harness.accuracy.metrics import PredictionMetrics
from edgetie.targets import SCHEMES

_RANGES = {
    "max_relative_error": (0.0, math.inf, "0 or more"),
    "max_kl": (0.0, math.inf, "0 or more"),
    "min_top1": (0.0, 1.0, "a fraction from 0 to 1"),
    "max_perplexity_increase": (-1.0, math.inf, "-1 or more"),
}


@dataclass(frozen=True)
class Thresholds:
    """Limits of an accuracy check. ``None`` means no limit.

    Attributes:
        max_relative_error: of the largest logit error to the largest reference logit.
        max_kl: mean KL divergence, nats per token.
        min_top1: fraction of positions with the same likeliest token.
        max_perplexity_increase: as a fraction: 0.003 is 0.3 %.

    The last two fail if they break their limit by more than two standard errors: less is chance on
    a short text.

    Raises:
        EdgetieError: if a limit is out of its range, as ``min_top1=98`` is for 0.98.
    """

    max_relative_error: float | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    max_perplexity_increase: float | None = None

    def __post_init__(self) -> None:
        for name, (least, most, allowed) in _RANGES.items():
            limit = getattr(self, name)
            if limit is not None and not least <= limit <= most:
                raise EdgetieError(f"must be {allowed}", parameter=name, value=limit)

    def override(self, other: Thresholds) -> Thresholds:
        """Replace each limit by the one in ``other``, if that is not ``None``."""
        return replace(self, **{name: v for name, v in vars(other).items() if v is not None})

    def failures(
        self, metrics: PredictionMetrics, *, relative_error: float = math.nan
    ) -> dict[str, str]:
        """Describe each metric that breaks its limit in a sentence, by field name.

        A value that is NaN breaks every limit.
        """
        failures = {}
        increase, error = metrics.perplexity_increase, metrics.perplexity_increase_error
        kl, top1 = metrics.mean_kl_divergence, metrics.top1_agreement
        for name, label, value, limit in (
            ("relative_error", "relative error", relative_error, self.max_relative_error),
            ("mean_kl_divergence", "KL divergence", kl, self.max_kl),
        ):
            if limit is not None and not value <= limit:
                failures[name] = f"{label} {_number(value)} is above {limit:g}"
        limit = self.max_perplexity_increase
        if limit is not None and not increase - 2 * error <= limit:
            text = f"{_number(increase)} ± {_number(error)}"
            failures["perplexity_increase"] = f"perplexity increase {text} is above {limit:g}"
        top1_error = metrics.top1_agreement_error
        if self.min_top1 is not None and not top1 + 2 * top1_error >= self.min_top1:
            text = f"{_number(top1)} ± {_number(top1_error)}"
            failures["top1_agreement"] = f"top-1 agreement {text} is below {self.min_top1:g}"
        return failures


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.4g}"


DEFAULTS: dict[str, Thresholds] = {
    "fp32": Thresholds(1e-4, 1e-6, 0.999, 1e-4),
    **{name: Thresholds(*row.limits) for name, row in SCHEMES.items() if row.limits is not None},
}
"""Limits for each precision, or for a scheme that needs other ones. Quantized models have no limit
for single logits: predictions decide."""

_PRECISION_OF = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "fp16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
}


def precision_of(bundle: Bundle) -> str:
    """Return the scheme or the precision in the manifest; in a bare file, that of most weights."""
    if not bundle.is_bare:
        scheme = bundle.manifest.quantization.get("scheme")
        return scheme if scheme in DEFAULTS else bundle.manifest.precision
    elements: dict[str, int] = {}
    for tensor in read_proto(bundle.model_path).graph.initializer:
        if precision := _PRECISION_OF.get(tensor.data_type):
            elements[precision] = elements.get(precision, 0) + math.prod(tensor.dims)
    return max(elements, key=lambda name: elements[name], default="fp32")


def default_thresholds(precision: str, *, on_text: bool = True) -> Thresholds:
    """Return the default limits.

    Args:
        precision: a name that begins as one of :data:`DEFAULTS` does.
        on_text: whether predictions were made on text. On random tokens, or after noise, a model
            is never sure, so neither the likeliest token nor perplexity is limited.
    """
    limits = DEFAULTS[max(filter(precision.startswith, DEFAULTS), key=len, default="int8")]
    return limits if on_text else replace(limits, min_top1=None, max_perplexity_increase=None)
