"""Measure what quantizing each weight costs, and give a higher precision to the costliest weights.

The cost is the divergence that quantizing a weight alone adds: KL(float || quantized) of the next
token, mean over positions of text that was not calibrated on. Costs add up well enough to choose by
them. The weights that gain the most for each byte get a higher precision, until limits hold.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgetie.bundle.bundle import Bundle
from edgetie.errors import LimitError, QuantizeError
from edgetie.harness.accuracy.metrics import PredictionErrors, PredictionMetrics
from edgetie.harness.accuracy.references import BundleReference
from edgetie.harness.accuracy.samples import scored, too_short
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.progress import Progress, Stages
from edgetie.quantize.calibration.activations import CalibrationText
from edgetie.quantize.formats.scheme_formats import weight_formats
from edgetie.quantize.formats.toggle import TOGGLE_INPUT
from edgetie.quantize.mixed_precision.candidates import MixedPrecisionCandidates
from edgetie.quantize.model_quantizer import ModelQuantizer, QuantizedModels

_WINDOW = 256
_RANKING_WINDOWS = 2  # their float logits stay in memory
_STEP = 0.5  # share of the excess divergence that is removed before measuring again
_TINY = 1e-30


class Precision(Enum):
    """The precision of a weight in a mixed-precision model."""

    SCHEME = "as in the scheme"
    HIGHER = "higher"
    FLOAT = "floating point"


@dataclass(frozen=True)
class Cost:
    """What quantizing a weight costs.

    Attributes:
        kl: the divergence it adds, in nats a token; negative if it happens to help.
        float_bytes: bytes that keeping it in floating point adds.
        higher_precision_bytes: bytes that its higher precision adds; 0 if the scheme has none.
        precision: the precision that it got.
    """

    name: str
    kl: float
    float_bytes: int
    higher_precision_bytes: int = 0
    precision: Precision = Precision.SCHEME

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "name": self.name,
            "kl": self.kl,
            "bytes": self.float_bytes,
            "finer_bytes": self.higher_precision_bytes,
            "kept": self.precision is Precision.FLOAT,
            "finer": self.precision is Precision.HIGHER,
        }


class AccuracyMeter:
    """Compares quantized bundles with the float one, as :func:`check_model` does.

    Args:
        float_bundle: the reference.
        text: its evaluation tokens are used.
        limits: what must hold.

    Raises:
        QuantizeError: if the text is too short.
    """

    def __init__(self, float_bundle: Bundle, text: CalibrationText, limits: Thresholds) -> None:
        self.limits = limits
        self._reference = BundleReference(float_bundle)
        task, tokens = float_bundle.task, text.evaluation
        length = min(_WINDOW, self._reference.longest or _WINDOW)
        self._windows = list(scored(task, tokens, length, text.prefix, text.suffix, text.mask))
        if too_short(self._windows, task, text.mask):
            raise QuantizeError(
                f"the calibration text has {len(tokens)} tokens after those calibrated on, too few "
                "to measure limits on; give a longer one"
            )
        self._reference_logits = [
            self._reference.logits(ids[None]) for ids, _ in self._windows[:_RANKING_WINDOWS]
        ]

    def divergence(self, candidate: BundleReference) -> float:
        """Measure the mean KL divergence on the first windows, which is quick."""
        errors = PredictionErrors()
        for (ids, targets), logits in zip(self._windows, self._reference_logits, strict=False):
            errors.add(logits, candidate.logits(ids[None]), targets)
        return errors.metrics.mean_kl_divergence

    def measure(self, bundle: Bundle) -> PredictionMetrics:
        """Measure all metrics on the whole text."""
        candidate, errors = BundleReference(bundle), PredictionErrors()
        for ids, targets in self._windows:
            first, second = (m.logits(ids[None]) for m in (self._reference, candidate))
            errors.add(first, second, targets)
        return errors.metrics


def quantize_within_limits(
    quantizer: ModelQuantizer, directory: Path, meter: AccuracyMeter, progress: Stages
) -> tuple[QuantizedModels, list[Cost], PredictionMetrics]:
    """Quantize all weights except those that cost too much for the limits.

    Args:
        quantizer: quantizes the models; it is preprocessed.
        directory: where the weights are written that the returned models read.
        meter: measures a bundle.
        progress: told how far it is.

    Returns:
        The models; the cost of each weight, if not all could be quantized; and the metrics.

    Raises:
        LimitError: if the limits are broken even with all linear layers in floating point.
    """
    model_path = directory / list(quantizer.models)[-1]
    bundle = Bundle(directory, model_path, quantizer.bundle.manifest)
    candidates = MixedPrecisionCandidates(bundle, quantizer)
    progress.stage("measure")
    result = candidates.write()
    metrics = meter.measure(bundle)
    if not meter.limits.failures(metrics):
        return result, [], metrics
    if weight_formats(quantizer.scheme) is None:
        remedy = "allow more or choose another scheme"
        raise limit_error(meter.limits, metrics, "with all weights of 16 bits", remedy)
    candidates.write_versions()
    costs = measure_costs(candidates, meter, progress)
    costs, metrics = _raise_precision(candidates, meter, costs, metrics)
    return candidates.write(*_names_by_precision(costs)), costs, metrics


def measure_costs(
    candidates: MixedPrecisionCandidates, meter: AccuracyMeter, progress: Progress
) -> list[Cost]:
    """Measure the cost of quantizing each weight, in graph order."""
    candidates.write_toggle_graph()
    model = BundleReference(candidates.bundle)
    costs = []
    for index, (name, float_bytes) in enumerate(candidates.float_bytes.items()):
        progress.advance(index, len(candidates.float_bytes))
        model.choices = {TOGGLE_INPUT: np.array(index)}
        added = candidates.higher_precision_bytes.get(name, 0)
        costs.append(Cost(name, meter.divergence(model), float_bytes, added))
    return costs


class _Step(NamedTuple):
    """A weight that gets another precision: the divergence this removes, and the bytes it adds."""

    name: str
    gain: float
    bytes: int
    precision: Precision


def _steps(costs: Sequence[Cost], remaining: float) -> list[_Step]:
    """List all steps, the one with the largest gain for each byte first.

    The higher precision leaves a share of ``remaining`` of each cost.
    """
    steps = []
    for cost in costs:
        higher, share = cost.higher_precision_bytes, 1.0
        if higher:
            share = remaining
            steps.append(_Step(cost.name, cost.kl * (1 - share), higher, Precision.HIGHER))
        float_bytes = cost.float_bytes - higher
        steps.append(_Step(cost.name, cost.kl * share, float_bytes, Precision.FLOAT))
    return sorted(steps, key=lambda step: step.gain / max(1, step.bytes), reverse=True)


def _raise_precision(
    candidates: MixedPrecisionCandidates,
    meter: AccuracyMeter,
    costs: list[Cost],
    metrics: PredictionMetrics,
) -> tuple[list[Cost], PredictionMetrics]:
    """Choose a precision for each weight so that limits hold, which break with ``metrics``."""
    steps = _steps(costs, _remaining_share(candidates, meter))
    limits, total = meter.limits, metrics.mean_kl_divergence
    needed = total - _allowed_share(limits, metrics) * total  # divergence to remove
    scale = total / max(sum(cost.kl for cost in costs), total)
    removed, by_name = 0.0, {cost.name: cost for cost in costs}
    for index, step in enumerate(steps):
        if by_name[step.name].precision is not Precision.FLOAT:
            by_name[step.name] = replace(by_name[step.name], precision=step.precision)
        removed += step.gain * scale
        if removed < needed and index < len(steps) - 1:
            continue
        candidates.write(*_names_by_precision(by_name.values()))
        metrics = meter.measure(candidates.bundle)
        if not limits.failures(metrics):
            return list(by_name.values()), metrics
        excess = (1 - _allowed_share(limits, metrics)) * metrics.mean_kl_divergence
        needed = removed + max(0.0, _STEP * excess)
    state = "with every linear layer in floating point, from the tied table alone"
    raise limit_error(limits, metrics, state, "allow more")


def _remaining_share(candidates: MixedPrecisionCandidates, meter: AccuracyMeter) -> float:
    """Measure the share of the linear layers' divergence that the higher precision leaves."""
    if not candidates.higher_precision_bytes:
        return 1.0
    divergences = []
    for higher_precision in ([], list(candidates.higher_precision_bytes)):
        candidates.write(candidates.embeddings, higher_precision)
        divergences.append(meter.divergence(BundleReference(candidates.bundle)))
    return min(1.0, divergences[1] / max(divergences[0], _TINY))


def _names_by_precision(costs: Collection[Cost]) -> tuple[set[str], set[str]]:
    """Return the names of the float and of the higher-precision weights."""
    float_weights = {cost.name for cost in costs if cost.precision is Precision.FLOAT}
    return float_weights, {cost.name for cost in costs if cost.precision is Precision.HIGHER}


def limit_error(
    limits: Thresholds, metrics: PredictionMetrics, state: str, remedy: str
) -> LimitError:
    """Make an error that names each broken limit, the state of the model and what to do."""
    failures = "; ".join(limits.failures(metrics).values())
    return LimitError(f"the limits cannot be kept: {state}, {failures}; {remedy}")


def _allowed_share(limits: Thresholds, metrics: PredictionMetrics) -> float:
    """Estimate the share of the present divergence that the limits allow."""
    shares = [1.0]
    if limits.max_kl is not None:
        shares.append(limits.max_kl / max(metrics.mean_kl_divergence, _TINY))
    if limits.max_perplexity_increase is not None:
        shares.append(limits.max_perplexity_increase / max(metrics.perplexity_increase, _TINY))
    if limits.min_top1 is not None:  # the number of other tokens grows like the logits' error
        shares.append(((1 - limits.min_top1) / max(1 - metrics.top1_agreement, _TINY)) ** 2)
    return max(0.0, min(shares))
