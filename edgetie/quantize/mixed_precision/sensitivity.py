"""What rounding costs, weight by weight, and which weights get more for it.

The cost of a weight is the divergence it adds when it alone is rounded: the mean over positions of
KL(float || rounded) of the next token. That is measured, on text that was not calibrated on. Costs
add up well enough to choose by. Where limits ask for less, weights take a finer form, if the scheme
has one, or stay in floating point, those first that win the most a byte, until the sum fits; what
was chosen is measured again, on the whole of the text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgetie.bundle.bundle import Bundle
from edgetie.errors import LimitError, QuantizeError
from edgetie.harness.accuracy.metrics import PredictionErrors, PredictionMetrics
from edgetie.harness.accuracy.references import BundleReference
from edgetie.harness.accuracy.samples import scored, too_short
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.progress import Progress, Stages
from edgetie.quantize.calibration.activations import Text
from edgetie.quantize.formats.scheme_formats import weight_formats
from edgetie.quantize.formats.toggle import TOGGLE_INPUT
from edgetie.quantize.mixed_precision.candidates import MixedPrecisionCandidates
from edgetie.quantize.model_quantizer import ModelQuantizer, QuantizedModels

_WINDOW = 256
_RANKED_ON = 2  # windows; their float logits stay in memory
_STEP = 0.5  # share of what is still too much that is cut before measuring again
_TINY = 1e-30


@dataclass(frozen=True)
class Cost:
    """What rounding a weight costs.

    Attributes:
        name: of the weight.
        kl: the divergence it adds, in nats a token; less than nothing where it happens to help.
        bytes: that keeping it in floating point adds.
        finer_bytes: that its finer form adds; 0 where the scheme has none.
        kept: whether it stayed in floating point.
        finer: whether it has the finer form.
    """

    name: str
    kl: float
    bytes: int
    finer_bytes: int = 0
    kept: bool = False
    higher_precision: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Meter:
    """Measures a mixture against the float model, as :func:`check` does.

    Args:
        float_bundle: what it is held against.
        text: nothing was calibrated on its rest.
    """

    def __init__(self, float_bundle: Bundle, text: Text) -> None:
        self._reference = BundleReference(float_bundle)
        window = min(_WINDOW, self._reference.longest or _WINDOW)
        self._windows = list(
            scored(float_bundle.task, text.rest, window, text.prefix, text.suffix, text.mask)
        )
        if too_short(self._windows, float_bundle.task, text.mask):
            raise QuantizeError(
                f"the calibration text has {len(text.rest)} tokens behind those calibrated on, too "
                "few to hold limits against; give a longer one"
            )
        self._known = [self._reference.logits(ids[None]) for ids, _ in self._windows[:_RANKED_ON]]

    def divergence(self, candidate: BundleReference) -> float:
        """On the first windows, which is quick."""
        errors = PredictionErrors()
        for (ids, targets), known in zip(self._windows, self._known, strict=False):
            errors.add(known, candidate.logits(ids[None]), targets)
        return errors.metrics.mean_kl_divergence

    def whole(self, bundle: Bundle) -> PredictionMetrics:
        """On all of them."""
        candidate, errors = BundleReference(bundle), PredictionErrors()
        for ids, targets in self._windows:
            first, second = (m.logits(ids[None]) for m in (self._reference, candidate))
            errors.add(first, second, targets)
        return errors.metrics


def fit(
    limits: Thresholds, rounding: ModelQuantizer, directory: Path, meter: Meter, progress: Stages
) -> tuple[QuantizedModels, list[Cost], PredictionMetrics]:
    """Round all weights but those that cost too much for limits to hold.

    Args:
        limits: what must hold.
        rounding: what rounds them.
        directory: one's own; codes and floats lie there for a while, the models' to the end.
        meter: measures a bundle.
        progress: told how far it is.

    Returns:
        The models, their weights in the directory; the cost of every product, if not all could be
        rounded; and what was measured in the end.

    Raises:
        LimitError: if the limits do not even hold with all products in floating point.
    """
    names = list(rounding.models)
    candidates = MixedPrecisionCandidates(
        Bundle(directory, directory / names[-1], rounding.manifest), rounding
    )
    progress.stage("measure")
    made = candidates.write()
    errors = meter.whole(candidates.bundle)
    costs: list[Cost] = []
    if limits.failures(errors):
        if weight_formats(rounding.scheme) is None:
            where = "with all weights of 16 bits"
            raise LimitError(_broken(limits, errors, where, "allow more or choose another scheme"))
        candidates.open()
        costs = measure_costs(candidates, meter, progress)
        costs, errors = _keep(limits, candidates, meter, costs, errors)
        made = candidates.write(*_chosen(costs))
    return made, costs, errors


def measure_costs(
    candidates: MixedPrecisionCandidates, meter: Meter, progress: Progress
) -> list[Cost]:
    """The cost of every product, in graph order."""
    names = list(candidates.bytes)
    candidates.write_switched()
    model = BundleReference(candidates.bundle)
    costs = []
    for index, name in enumerate(names):
        progress.advance(index, len(names))
        model.choices = {TOGGLE_INPUT: np.array(index)}
        higher_precision = candidates.finer_bytes.get(name, 0)
        costs.append(Cost(name, meter.divergence(model), candidates.bytes[name], higher_precision))
    return costs


@dataclass(frozen=True)
class _Step:
    """What a weight can be given.

    Attributes:
        name: of the weight.
        gain: the divergence that goes away.
        bytes: that it adds.
        finer: whether this is the finer form; else it is floating point.
    """

    name: str
    gain: float
    bytes: int
    higher_precision: bool

    @property
    def worth(self) -> float:
        return self.gain / max(1, self.bytes)


def _steps(costs: Sequence[Cost], left: float) -> list[_Step]:
    """All of them, the one that wins the most a byte first.

    Args:
        costs: of the products.
        left: the share of a cost that the finer form leaves.
    """
    steps = []
    for cost in costs:
        if cost.finer_bytes:
            steps.append(_Step(cost.name, cost.kl * (1 - left), cost.finer_bytes, True))
        share = left if cost.finer_bytes else 1.0
        steps.append(_Step(cost.name, cost.kl * share, cost.bytes - cost.finer_bytes, False))
    return sorted(steps, key=lambda step: step.worth, reverse=True)


def _keep(
    limits: Thresholds,
    candidates: MixedPrecisionCandidates,
    meter: Meter,
    costs: list[Cost],
    errors: PredictionMetrics,
) -> tuple[list[Cost], PredictionMetrics]:
    """Mark what gets more; ``errors`` are those of the scheme's own form throughout."""
    steps = _steps(costs, _left_by_finer(candidates, meter))
    total = errors.mean_kl_divergence
    wanted = total - _share(limits, errors) * total  # divergence to get rid of
    scale = total / max(sum(cost.kl for cost in costs), total)
    removed, found = 0.0, {cost.name: cost for cost in costs}
    for index, step in enumerate(steps):
        before = found[step.name]
        found[step.name] = replace(
            before,
            higher_precision=step.higher_precision and not before.kept,
            kept=before.kept or not step.higher_precision,
        )
        removed += step.gain * scale
        if removed < wanted and index < len(steps) - 1:
            continue
        candidates.write(*_chosen(found.values()))
        errors = meter.whole(candidates.bundle)
        if not limits.failures(errors):
            return list(found.values()), errors
        wanted = removed + max(
            0.0, _STEP * (1 - _share(limits, errors)) * errors.mean_kl_divergence
        )
    where = "with every product in floating point, from the tied table alone"
    raise LimitError(_broken(limits, errors, where, "allow more"))


def _left_by_finer(candidates: MixedPrecisionCandidates, meter: Meter) -> float:
    """The share of the products' divergence that their finer form leaves."""
    if not candidates.finer_bytes:
        return 1.0
    found = []
    for higher_precision in ([], list(candidates.finer_bytes)):
        candidates.write(candidates.tables, higher_precision)
        found.append(meter.divergence(BundleReference(candidates.bundle)))
    return min(1.0, found[1] / max(found[0], _TINY))


def _chosen(costs: Collection[Cost]) -> tuple[set[str], set[str]]:
    """Names of what stays in floating point, and of what has the finer form."""
    return {c.name for c in costs if c.kept}, {c.name for c in costs if c.higher_precision}


def require_kept(limits: Thresholds, errors: PredictionMetrics, where: str, remedy: str) -> None:
    """Refuse what breaks a limit.

    Raises:
        LimitError: naming each that is broken.
    """
    if limits.failures(errors):
        raise LimitError(_broken(limits, errors, where, remedy))


def _broken(limits: Thresholds, errors: PredictionMetrics, where: str, remedy: str) -> str:
    found = "; ".join(limits.failures(errors).values())
    return f"the limits cannot be kept: {where}, {found}; {remedy}"


def _share(limits: Thresholds, errors: PredictionMetrics) -> float:
    """The share of the present divergence that the limits leave, roughly."""
    shares = [1.0]
    if limits.max_kl is not None:
        shares.append(limits.max_kl / max(errors.mean_kl_divergence, _TINY))
    if limits.max_perplexity_increase is not None:
        shares.append(limits.max_perplexity_increase / max(errors.perplexity_increase, _TINY))
    if limits.min_top1 is not None:  # the number of other tokens grows like the logits' error
        shares.append(((1 - limits.min_top1) / max(1 - errors.top1_agreement, _TINY)) ** 2)
    return max(0.0, min(shares))
