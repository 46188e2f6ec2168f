"""Search the smallest form of a model that keeps accuracy limits.

The form that the scheme gives is measured first. If it breaks the limits, one that surely holds is
found: all weights in the higher precision, or all linear layers in floating point. Between the two,
the weights that gain the most for each byte get a higher precision. So the search can stop at any
time with the best form so far.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from edgetie.bundle.bundle import Bundle
from edgetie.errors import LimitError
from edgetie.harness.accuracy.metrics import PredictionMetrics
from edgetie.harness.accuracy.references import BundleReference
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.progress import Stages, format_duration
from edgetie.quantize.formats.scheme_formats import weight_formats
from edgetie.quantize.mixed_precision.accuracy_meter import AccuracyMeter
from edgetie.quantize.mixed_precision.candidates import MixedPrecisionCandidates
from edgetie.quantize.mixed_precision.sensitivity import (
    Cost,
    Precision,
    measure_costs,
    names_by_precision,
    unmeasured_costs,
)
from edgetie.quantize.model_quantizer import ModelQuantizer, QuantizedModels

_TRIES = 4  # between a form that breaks the limits and one that holds them
_TYPICAL_TRIES, _TYPICAL_TOKENS = 4, 2048  # of a search, and that a try reads until it is decided
_MOST_TOKENS = 4096  # that a try reads: one that is not decided then is too close to the limit
_MARGIN = 0.85  # share of the allowed divergence that a try aims at, so that it is soon decided
_CLOSE = 0.01  # share of a model's bytes that is not worth another try
_TINY = 1e-30


@dataclass(frozen=True)
class SearchSummary:
    """How the search for a form within limits went.

    Attributes:
        estimated_seconds: what it was expected to take, after its first measurement.
        seconds: what it took.
        tried: number of forms that were measured.
        stopped: why it ended early: ``time budget``, ``request`` or, if it did not, empty.
    """

    estimated_seconds: float
    seconds: float
    tried: int
    stopped: str = ""


class SearchResult(NamedTuple):
    """The models; the costs and the summary, if the scheme alone broke the limits; the metrics."""

    models: QuantizedModels
    costs: list[Cost]
    metrics: PredictionMetrics
    summary: SearchSummary | None = None


def quantize_within_limits(
    quantizer: ModelQuantizer,
    directory: Path,
    meter: AccuracyMeter,
    progress: Stages,
    deadline: float = math.inf,
) -> SearchResult:
    """Quantize all weights except those that cost too much for the limits.

    After ``deadline``, or on :class:`KeyboardInterrupt`, the best form so far is the result.

    Args:
        quantizer: quantizes the models; it is preprocessed.
        directory: where the weights are written that the returned models read.
        meter: measures a bundle.
        progress: told how far it is, and how long the search will take.
        deadline: on the clock of :func:`time.perf_counter`. One form that holds is found in any
            case.

    Raises:
        LimitError: if the limits are broken even with all linear layers in floating point.
        KeyboardInterrupt: if no form that holds has been found yet.
    """
    model_path = directory / list(quantizer.models)[-1]
    bundle = Bundle(directory, model_path, quantizer.bundle.manifest)
    candidates = MixedPrecisionCandidates(bundle, quantizer)
    progress.stage("measure")
    result = candidates.write()
    metrics = meter.measure(bundle, progress.advance).metrics
    if not meter.limits.failures(metrics):
        return SearchResult(result, [], metrics)
    if weight_formats(quantizer.scheme) is None:
        remedy = "allow more or choose another scheme"
        raise limit_error(meter.limits, metrics, "with all weights of 16 bits", remedy)
    candidates.write_versions()
    search = _Search(candidates, meter, progress, deadline)
    costs, metrics, summary = search.run(metrics)
    return SearchResult(candidates.write(*names_by_precision(costs)), list(costs), metrics, summary)


class _Form(NamedTuple):
    """A choice of precisions, what was measured of it, and whether it holds the limits."""

    costs: Sequence[Cost]
    metrics: PredictionMetrics
    holds: bool

    @property
    def added_bytes(self) -> int:
        return sum(cost.added_bytes for cost in self.costs)


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


def _take_steps(costs: Sequence[Cost], steps: Sequence[_Step]) -> list[Cost]:
    """Raise the precision of the weights of these steps."""
    by_name = {cost.name: cost for cost in costs}
    for step in steps:
        if by_name[step.name].precision is not Precision.FLOAT:
            by_name[step.name] = replace(by_name[step.name], precision=step.precision)
    return list(by_name.values())


def _with_precision(costs: Sequence[Cost], precision: Precision) -> list[Cost]:
    """Give all weights a precision, if they have it."""
    return [
        replace(cost, precision=precision)
        if precision is Precision.FLOAT or cost.higher_precision_bytes
        else cost
        for cost in costs
    ]


class _Search:
    """Looks for the smallest form that holds.

    Attributes:
        best: the smallest form so far that holds.
    """

    def __init__(
        self,
        candidates: MixedPrecisionCandidates,
        meter: AccuracyMeter,
        progress: Stages,
        deadline: float,
    ) -> None:
        self.best: _Form | None = None
        self._candidates, self._meter, self._progress = candidates, meter, progress
        self._deadline, self._tried = deadline, 0

    def run(
        self, metrics: PredictionMetrics
    ) -> tuple[Sequence[Cost], PredictionMetrics, SearchSummary]:
        """Search; the scheme's own form breaks the limits with ``metrics``."""
        start, estimate = time.perf_counter(), self._estimate()
        self._progress.note(
            f"the scheme alone breaks the limits; the search takes about "
            f"{format_duration(estimate)}.\n  Interrupt it to get the best form so far."
        )
        stopped = ""
        try:
            if not self._search(_Form(unmeasured_costs(self._candidates), metrics, holds=False)):
                stopped = "time budget"
        except KeyboardInterrupt:
            if self.best is None:
                raise
            stopped = "request"
        assert self.best is not None
        seconds = time.perf_counter() - start
        summary = SearchSummary(estimate, seconds, self._tried, stopped)
        return self.best.costs, self.best.metrics, summary

    def _estimate(self) -> float:
        """Estimate the seconds that the search takes, from the first measurement."""
        meter, count = self._meter, len(self._candidates.float_bytes)
        ranking = count * meter.ranking_tokens * meter.reference_seconds
        return ranking + _TYPICAL_TRIES * _TYPICAL_TOKENS * meter.seconds

    def _search(self, low: _Form) -> bool:
        """Find forms that hold, each smaller than the one before; return whether time sufficed.

        Args:
            low: the scheme's own form.
        """
        has_higher = any(self._candidates.higher_precision_bytes.values())
        if has_higher:
            self._try(_with_precision(low.costs, Precision.HIGHER))
        needs_floats = self.best is None
        if needs_floats:
            form = self._try(_with_precision(low.costs, Precision.FLOAT))
            if form is not None and self.best is None:
                state = "with every linear layer in floating point, from the tied table alone"
                raise limit_error(self._meter.limits, form.metrics, state, "allow more")
        self._progress.stage("rank weights")
        costs = measure_costs(self._candidates, self._meter, self._progress, self._deadline)
        if costs is None:
            return False
        assert self.best is not None
        best = zip(costs, self.best.costs, strict=True)
        self.best = self.best._replace(costs=[replace(c, precision=b.precision) for c, b in best])
        self._progress.stage("measure")
        steps = _steps(costs, self._remaining_share() if has_higher else 1.0)
        if not needs_floats:
            steps = [step for step in steps if step.precision is Precision.HIGHER]
        return self._narrow(costs, steps, low.metrics)

    def _narrow(
        self, costs: Sequence[Cost], steps: Sequence[_Step], low: PredictionMetrics
    ) -> bool:
        """Try forms between one with no steps, which breaks the limits, and one with all of them,
        which is the best so far; return whether time sufficed.
        """
        assert self.best is not None
        gains = [0.0, *accumulate(max(0.0, step.gain) for step in steps)]
        added = [0, *accumulate(step.bytes for step in steps)]
        first, last, high = 0, len(steps), self.best.metrics
        for _ in range(_TRIES):
            total = low.mean_kl_divergence
            excess = total * (1 - _MARGIN * _allowed_share(self._meter.limits, low))
            share = excess / max(total - high.mean_kl_divergence, _TINY)
            count = bisect_left(gains, gains[first] + share * (gains[last] - gains[first]))
            count = min(max(count, first + 1), last - 1)
            saved = added[last] - added[count]
            if count <= first or saved <= _CLOSE * self._candidates.scheme_bytes:
                return True
            form = self._try(_take_steps(costs, steps[:count]))
            if form is None:
                return False
            if form.holds:
                last, high = count, form.metrics
            else:
                first, low = count, form.metrics
        return True

    def _try(self, costs: Sequence[Cost]) -> _Form | None:
        """Measure a form, and keep it if it holds and is the smallest so far.

        ``None`` is returned if another one holds and the time is over.
        """
        deadline = most_tokens = math.inf
        if self.best is not None:
            deadline, most_tokens = self._deadline, _MOST_TOKENS
        self._candidates.write(*names_by_precision(costs))
        metrics, is_certain = self._meter.measure(
            self._candidates.bundle, self._progress.advance, deadline, most_tokens
        )
        self._tried += 1
        if time.perf_counter() > deadline:
            return None
        form = _Form(costs, metrics, is_certain and not self._meter.limits.failures(metrics))
        if form.holds and (self.best is None or form.added_bytes < self.best.added_bytes):
            self.best = form
        return form

    def _remaining_share(self) -> float:
        """Measure the share of the linear layers' divergence that the higher precision leaves."""
        candidates, divergences = self._candidates, []
        for higher_precision in ([], list(candidates.higher_precision_bytes)):
            candidates.write(candidates.embeddings, higher_precision)
            divergences.append(self._meter.divergence(BundleReference(candidates.bundle)))
        return min(1.0, divergences[1] / max(divergences[0], _TINY))


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
