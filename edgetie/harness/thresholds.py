"""What an accuracy check must reach to pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx

from edgetie.bundle import Bundle

DEFAULTS: dict[str, Thresholds]


@dataclass(frozen=True)
class Thresholds:
    """Limits of an accuracy check; ``None`` does not limit.

    Attributes:
        max_relative_error: of the largest logit error to the largest reference logit.
        max_kl: mean KL divergence, nats per token.
        min_top1: fraction of positions with the same likeliest token.
        max_perplexity_increase: as a fraction: 0.003 is 0.3 %.
    """

    max_relative_error: float | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    max_perplexity_increase: float | None = None

    def override(self, **limits: float | None) -> Thresholds:
        """A copy with every limit that is not ``None`` replaced."""
        return replace(self, **{name: v for name, v in limits.items() if v is not None})

    def failures(
        self, *, relative_error: float, kl: float, top1: float, perplexity_increase: float
    ) -> list[str]:
        """One sentence for each limit that is not kept. A value that is NaN keeps none."""
        found = []
        for name, value, limit in (
            ("relative error", relative_error, self.max_relative_error),
            ("KL divergence", kl, self.max_kl),
            ("perplexity increase", perplexity_increase, self.max_perplexity_increase),
        ):
            if limit is not None and not value <= limit:
                found.append(f"{name} {_number(value)} is above {limit:g}")
        if self.min_top1 is not None and not top1 >= self.min_top1:
            found.append(f"top-1 agreement {_number(top1)} is below {self.min_top1:g}")
        return found


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.4g}"


DEFAULTS = {
    "fp32": Thresholds(1e-4, 1e-6, 0.999, 1e-4),
    "fp16": Thresholds(1e-2, 1e-3, 0.99, 1e-3),
    "int8": Thresholds(None, 2e-2, 0.98, 3e-3),
}
"""Limits for each precision. int8 has no limit for single logits: predictions decide."""

_PRECISION_OF = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "fp16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
}


def precision_of(bundle: Bundle) -> str:
    """The precision in the manifest; of a bare ONNX file, the one most of its weights have."""
    if bundle.manifest is not None:
        return bundle.manifest.precision
    elements: dict[str, int] = {}
    for tensor in onnx.load(str(bundle.model_path), load_external_data=False).graph.initializer:
        if precision := _PRECISION_OF.get(tensor.data_type):
            elements[precision] = elements.get(precision, 0) + math.prod(tensor.dims)
    return max(elements, key=lambda name: elements[name], default="fp32")


def default_thresholds(precision: str) -> Thresholds:
    """The limits for ``precision``, a name that begins with fp32, fp16 or int8."""
    return next(
        (DEFAULTS[name] for name in DEFAULTS if precision.startswith(name)), DEFAULTS["int8"]
    )
