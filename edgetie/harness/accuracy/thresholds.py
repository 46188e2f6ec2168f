"""What an accuracy check must reach to pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx

from edgetie.bundle.bundle import Bundle

DEFAULTS: dict[str, Thresholds]


@dataclass(frozen=True)
class Thresholds:
    """Limits of an accuracy check; ``None`` does not limit.

    Attributes:
        max_relative_error: of the largest logit error to the largest reference logit.
        max_kl: mean KL divergence, nats per token.
        min_top1: fraction of positions with the same likeliest token.
        max_perplexity_increase: as a fraction: 0.003 is 0.3 %. An increase fails that is above it
            by more than two standard errors; on a short text less than that is chance.
    """

    max_relative_error: float | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    max_perplexity_increase: float | None = None

    def override(self, other: Thresholds) -> Thresholds:
        """These limits, each replaced by the one in ``other`` where that is not ``None``."""
        return replace(self, **{name: v for name, v in vars(other).items() if v is not None})

    def failures(
        self,
        *,
        relative_error: float,
        mean_kl_divergence: float,
        top1_agreement: float,
        top1_agreement_error: float,
        perplexity_increase: float,
        perplexity_increase_error: float,
    ) -> dict[str, str]:
        """A sentence for each metric that breaks its limit. A value that is NaN keeps none."""
        found = {}
        certain = perplexity_increase - 2 * perplexity_increase_error
        for name, value, limit in (
            ("relative_error", relative_error, self.max_relative_error),
            ("mean_kl_divergence", mean_kl_divergence, self.max_kl),
            ("perplexity_increase", certain, self.max_perplexity_increase),
        ):
            if limit is not None and not value <= limit:
                found[name] = f"is above {limit:g}"
        if self.min_top1 is not None and not top1_agreement >= self.min_top1:
            found["top1_agreement"] = f"is below {self.min_top1:g}"
        texts = {
            "relative_error": f"relative error {_number(relative_error)}",
            "mean_kl_divergence": f"KL divergence {_number(mean_kl_divergence)}",
            "top1_agreement": f"top-1 agreement {_number(top1_agreement)} "
            f"± {_number(top1_agreement_error)}",
            "perplexity_increase": f"perplexity increase {_number(perplexity_increase)} "
            f"± {_number(perplexity_increase_error)}",
        }
        return {name: f"{texts[name]} {how}" for name, how in found.items()}


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.4g}"


DEFAULTS = {
    "fp32": Thresholds(1e-4, 1e-6, 0.999, 1e-4),
    "fp16": Thresholds(1e-2, 1e-3, 0.99, 1e-3),
    "int8-dynamic": Thresholds(None, 3e-2, 0.95, 1e-2),
    "int8-static16": Thresholds(None, 3e-2, 0.93, 2e-2),
    "int8-static": Thresholds(None, 1e-1, 0.85, 5e-2),
    "int8": Thresholds(None, 2e-2, 0.98, 3e-3),
    "int4": Thresholds(None, 3e-1, 0.7, 2e-1),
}
"""Limits for each precision, or for a scheme of its own. Quantized models have no limit for single
logits: predictions decide."""

_PRECISION_OF = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "fp16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
}


def precision_of(bundle: Bundle) -> str:
    """The scheme or the precision in the manifest; of a bare ONNX file, the precision that most of
    its weights have.
    """
    if bundle.manifest is not None:
        scheme = bundle.manifest.quantization.get("scheme")
        return scheme if scheme in DEFAULTS else bundle.manifest.precision
    elements: dict[str, int] = {}
    for tensor in onnx.load(str(bundle.model_path), load_external_data=False).graph.initializer:
        if precision := _PRECISION_OF.get(tensor.data_type):
            elements[precision] = elements.get(precision, 0) + math.prod(tensor.dims)
    return max(elements, key=lambda name: elements[name], default="fp32")


def default_thresholds(precision: str, *, on_text: bool = True) -> Thresholds:
    """The default limits.

    Args:
        precision: a name that begins as one of :data:`DEFAULTS` does.
        on_text: whether predictions were made on text. On random tokens, and behind noise, a model
            is never sure: the likeliest token changes with the last bits, and perplexity measures
            nothing, so neither is limited then.
    """
    limits = next((DEFAULTS[name] for name in DEFAULTS if precision.startswith(name)), None)
    limits = limits or DEFAULTS["int8"]
    return limits if on_text else replace(limits, min_top1=None, max_perplexity_increase=None)
