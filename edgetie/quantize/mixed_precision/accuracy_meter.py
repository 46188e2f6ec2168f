"""Compare quantized bundles with the float one, on no more text than a decision needs."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist, mean, stdev
from typing import NamedTuple

from edgetie.bundle.bundle import Bundle
from edgetie.errors import QuantizeError
from edgetie.harness.accuracy.metrics import Floats, Ids, PredictionErrors, PredictionMetrics
from edgetie.harness.accuracy.references import BundleReference
from edgetie.harness.accuracy.samples import scored, too_short
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.providers.registry import AUTO
from edgetie.quantize.calibration.activations import CalibrationText

_WINDOW = 256
_RANKING_WINDOWS, _RANKING_TOKENS = 2, 64
"""Windows, and their first tokens, that the cost of a single weight is measured on."""

_CACHE_BYTES = 1 << 28  # of float logits that stay in memory
_LEAST_WINDOWS = 6  # that a decision needs
_LEVEL = 0.99


class Measurement(NamedTuple):
    """Metrics, and whether more of the text would hardly change which limits hold."""

    metrics: PredictionMetrics
    is_certain: bool


class AccuracyMeter:
    """Compares quantized bundles with the float one, as :func:`check_model` does.

    Args:
        float_bundle: the reference.
        text: its evaluation tokens are used.
        limits: what must hold.

    Attributes:
        ranking_tokens: how many tokens :meth:`divergence` reads.
        seconds, reference_seconds: for each token that :meth:`measure` read so far: of both models
            and of the float one.

    Raises:
        QuantizeError: if the text is too short.
    """

    def __init__(self, float_bundle: Bundle, text: CalibrationText, limits: Thresholds) -> None:
        self.limits = limits
        self.seconds = self.reference_seconds = 0.0
        self._reference = BundleReference(float_bundle)
        task, tokens = float_bundle.task, text.evaluation
        length = min(_WINDOW, self._reference.longest or _WINDOW)
        windows = list(scored(task, tokens, length, text.prefix, text.suffix, text.mask))
        if too_short(windows, task, text.mask):
            raise QuantizeError(
                f"the calibration text has {len(tokens)} tokens after those calibrated on, too few "
                "to measure limits on; give a longer one"
            )
        self._windows = _spread(windows)
        self._logits: dict[int, Floats] = {}  # of the float model, by window
        self._ranking: list[tuple[Ids, Ids, Floats]] = []
        for ids, targets in self._windows[:_RANKING_WINDOWS]:
            start = ids[:_RANKING_TOKENS]
            logits = self._reference.logits(start[None])
            self._ranking.append((start, targets[:_RANKING_TOKENS], logits))
        self.ranking_tokens = sum(len(ids) for ids, _, _ in self._ranking)

    def divergence(self, candidate: BundleReference) -> float:
        """Measure the mean KL divergence on a few tokens, which is quick."""
        errors = PredictionErrors()
        for ids, targets, logits in self._ranking:
            errors.add(logits, candidate.logits(ids[None]), targets)
        return errors.metrics.mean_kl_divergence

    def measure(
        self,
        bundle: Bundle,
        advance: Callable[[int, int], None] = lambda done, total: None,
        deadline: float = math.inf,
        most_tokens: float = math.inf,
    ) -> Measurement:
        """Measure all metrics until it is certain whether the limits hold, or the text ends.

        Args:
            bundle: the quantized one.
            advance: called with the number of windows that are done, and of all.
            deadline: on the clock of :func:`time.perf_counter`. Nothing is measured after it.
            most_tokens: number of tokens after which it is not worth reading more.
        """
        candidate, errors = BundleReference(bundle, provider=AUTO), PredictionErrors()
        excesses: list[dict[str, float]] = []
        start, reference_seconds, tokens = time.perf_counter(), 0.0, 0
        is_decided = False
        for index, (ids, targets) in enumerate(self._windows):
            advance(index, len(self._windows))
            before = time.perf_counter()
            if index and (before > deadline or tokens >= most_tokens):
                break
            reference = self._reference_logits(index, ids)
            reference_seconds += time.perf_counter() - before
            logits, window = candidate.logits(ids[None]), PredictionErrors()
            for each in (errors, window):
                each.add(reference, logits, targets)
            tokens += len(ids)
            excesses.append(_excesses(self.limits, window.metrics))
            is_decided = _is_decided(excesses, self.limits.failures(errors.metrics))
            if is_decided:
                break
        self.seconds = (time.perf_counter() - start) / tokens
        self.reference_seconds = max(self.reference_seconds, reference_seconds / tokens)
        return Measurement(errors.metrics, is_decided or len(excesses) == len(self._windows))

    def _reference_logits(self, index: int, ids: Ids) -> Floats:
        """Compute the float logits of a window; those of the first windows only once."""
        logits = self._logits.get(index)
        if logits is None:
            logits = self._reference.logits(ids[None])
            if sum(each.nbytes for each in self._logits.values()) + logits.nbytes <= _CACHE_BYTES:
                self._logits[index] = logits
        return logits


def _spread(windows: Sequence[tuple[Ids, Ids]]) -> list[tuple[Ids, Ids]]:
    """Order windows so that the first few come from all over the text."""
    golden = (math.sqrt(5) - 1) / 2
    order = sorted(range(len(windows)), key=lambda index: index * golden % 1)
    return [windows[index] for index in order]


def _excesses(limits: Thresholds, metrics: PredictionMetrics) -> dict[str, float]:
    """Return how far each limited metric is beyond its limit, by its name; negative if it holds."""
    distances = {
        "mean_kl_divergence": (metrics.mean_kl_divergence, limits.max_kl, 1),
        "top1_agreement": (metrics.top1_agreement, limits.min_top1, -1),
        "perplexity_increase": (metrics.perplexity_increase, limits.max_perplexity_increase, 1),
    }
    return {n: sign * (value - at) for n, (value, at, sign) in distances.items() if at is not None}


def _is_decided(excesses: Sequence[Mapping[str, float]], failures: Mapping[str, str]) -> bool:
    """Whether more windows would hardly change which limits hold.

    Args:
        excesses: of each window.
        failures: the limits that all windows together break.

    A broken limit is certain if the confidence interval of its metric lies beyond it, that all
    limits hold if every interval lies within.
    """
    if len(excesses) < _LEAST_WINDOWS:
        return False
    beyond, within = [], []
    for name in excesses[0]:
        values = [each[name] for each in excesses if not math.isnan(each[name])]
        if len(values) < _LEAST_WINDOWS:
            return False
        center = mean(values)
        half_width = _quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
        within.append(center + half_width < 0)
        if name in failures:
            beyond.append(center - half_width > 0)
    return any(beyond) if failures else all(within)


def _quantile(degrees: int) -> float:
    """Approximate Student's t for two sides of the level (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2
