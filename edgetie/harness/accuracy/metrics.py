"""Distance between the outputs of two models, accumulated window by window in float64."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from edgetie.graph.constants import MASKED_LOGIT

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_CHUNK_ELEMENTS = 1 << 17
"""Logits converted to float64 at a time: 1 MiB an array, which fits into a processor's cache."""


class LogitErrors:
    """Distance between logits: ``|candidate - reference|`` over all positions and tokens.

    Attributes:
        positions: positions compared.
        nonfinite: positions left out because a logit was NaN or infinite.
        max_abs_error: the largest distance, except for tokens that both models mask out.
    """

    def __init__(self) -> None:
        self.positions = self.nonfinite = self._count = 0
        self.max_abs_error = self._largest_reference = math.nan
        self._sum = 0.0

    def add(self, reference: Floats, candidate: Floats) -> None:
        """Compare logits of shape ``(positions, vocabulary)``."""
        for ref, cand, finite in _chunks(reference, candidate):
            self.positions += len(ref)
            self.nonfinite += int(len(finite) - finite.sum())
            if len(ref):
                distance, size = np.abs(cand - ref), np.abs(ref)
                if size.max() >= MASKED_LOGIT:  # tokens that both mask out do not count
                    distance[(ref <= -MASKED_LOGIT) & (cand <= -MASKED_LOGIT)] = 0
                    size[size >= MASKED_LOGIT] = 0
                self.max_abs_error = float(np.fmax(self.max_abs_error, distance.max()))
                self._largest_reference = float(np.fmax(self._largest_reference, size.max()))
                self._sum += float(distance.sum())
                self._count += distance.size

    @property
    def mean_abs_error(self) -> float:
        return self._sum / self._count if self._count else math.nan

    @property
    def relative_error(self) -> float:
        """``max_abs_error / max |reference logit|``."""
        if self.max_abs_error == 0:
            return 0.0
        return self.max_abs_error / self._largest_reference if self._largest_reference else math.inf


class EmbeddingErrors:
    """Distance between what two encoders compute, over all embeddings: rows of their outputs."""

    def __init__(self) -> None:
        self._count = 0
        self._similarity = self._squared_error = self._squared_size = 0.0

    def add(self, reference: Floats, candidate: Floats) -> None:
        """Compare an output ``(..., size)``."""
        one, other = (each.reshape(-1, each.shape[-1]) for each in (reference, candidate))
        one, other = one.astype(np.float64), other.astype(np.float64)
        sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        products = np.einsum("ij,ij->i", one, other)
        self._count += int((sizes > 0).sum())
        self._similarity += float((products[sizes > 0] / sizes[sizes > 0]).sum())
        self._squared_error += float(((other - one) ** 2).sum())
        self._squared_size += float((one**2).sum())

    @property
    def similarity(self) -> float:
        """Mean cosine similarity; NaN without embeddings."""
        return self._similarity / self._count if self._count else math.nan

    @property
    def relative_error(self) -> float:
        """Norm of the difference over the norm of the reference; NaN without embeddings."""
        if not self._squared_size:
            return math.nan
        return math.sqrt(self._squared_error / self._squared_size)


@dataclass(frozen=True, kw_only=True)
class PredictionMetrics:
    """Distance between the predictions of two models; NaN if there was nothing to measure it on.

    Attributes:
        predictions: positions whose token distributions were compared.
        tokens: scored tokens.
        mean_kl_divergence: ``KL(reference || candidate)``, nats, mean over the predictions.
        top1_agreement: fraction of predictions for which both models rank the same token first.
        top1_agreement_error: its standard error over the choice of text (binomial).
        perplexity, reference_perplexity: ``exp(mean negative log-likelihood)`` of scored tokens.
        perplexity_increase: ``perplexity / reference_perplexity - 1``, as a fraction.
        perplexity_increase_error: its standard error over the choice of text,
            ``ratio * stdev(d) / sqrt(tokens)``, ``d`` being the difference in nats token by token.
    """

    predictions: int
    tokens: int
    mean_kl_divergence: float
    top1_agreement: float
    top1_agreement_error: float
    perplexity: float
    reference_perplexity: float
    perplexity_increase: float
    perplexity_increase_error: float


class PredictionErrors:
    """Accumulates :class:`PredictionMetrics` window by window."""

    def __init__(self) -> None:
        self._predictions = self._tokens = self._agreements = 0
        self._divergence = self._nats = self._reference_nats = self._squared_differences = 0.0

    def add(self, reference: Floats, candidate: Floats, targets: Ids) -> None:
        """Compare the predictions made along one window.

        Args:
            reference, candidate: logits ``(positions, vocabulary)``.
            targets: the token to predict at each position, ``(positions,)``; -1 for none. Such a
                position still counts for divergence and top-1 agreement.
        """
        start = 0
        for ref, cand, finite in _chunks(reference, candidate):
            positions = np.flatnonzero(finite) + start
            start += len(finite)
            if not len(positions):
                continue
            (log_p, p), (log_q, _) = _softmax(ref), _softmax(cand)
            self._predictions += len(positions)
            self._divergence += float(np.vdot(p, log_p - log_q))
            self._agreements += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
            targeted = targets[positions]
            scored = np.flatnonzero(targeted >= 0)
            self._tokens += len(scored)
            expected, actual = log_p[scored, targeted[scored]], log_q[scored, targeted[scored]]
            self._reference_nats -= float(expected.sum())
            self._nats -= float(actual.sum())
            self._squared_differences += float(((expected - actual) ** 2).sum())

    @property
    def metrics(self) -> PredictionMetrics:
        """The metrics of everything added so far."""
        count, tokens = self._predictions, self._tokens
        agreement = self._agreements / count if count else math.nan
        nats = self._nats / tokens if tokens else math.nan
        reference_nats = self._reference_nats / tokens if tokens else math.nan
        difference, error = nats - reference_nats, math.nan
        if tokens > 1:
            variance = (self._squared_differences - tokens * difference**2) / (tokens - 1)
            error = _exp(difference) * math.sqrt(max(variance, 0.0) / tokens)
        return PredictionMetrics(
            predictions=count,
            tokens=tokens,
            mean_kl_divergence=max(self._divergence / count, 0.0) if count else math.nan,
            top1_agreement=agreement,
            top1_agreement_error=math.sqrt(agreement * (1 - agreement) / max(count, 1)),
            perplexity=_exp(nats),
            reference_perplexity=_exp(reference_nats),
            perplexity_increase=_exp(difference) - 1,
            perplexity_increase_error=error,
        )


@dataclass(frozen=True)
class Interval:
    """Bounds of a value, which hold with probability ``level``."""

    low: float
    high: float
    level: float


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Compute a confidence interval of a median from order statistics, for any distribution.

    Fewer than six values cannot reach ``level``: the interval is then their range, with its own
    level. Values must be independent (Conover, Practical Nonparametric Statistics).
    """
    ordered = sorted(values)
    count = len(ordered)
    tails = [ways / (1 << count) for ways in accumulate(math.comb(count, k) for k in range(count))]
    excluded = max(bisect_right(tails, (1 - level) / 2) - 1, 0)  # values at either end
    low, high = ordered[excluded], ordered[count - 1 - excluded]
    return Interval(low, high, 1 - 2 * tails[excluded])


def common_prefix(expected: list[int], actual: list[int]) -> int:
    """Count the equal tokens before the first that differs."""
    pairs = zip(expected, actual, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(actual)))


def _chunks(
    reference: Floats, candidate: Floats
) -> Iterator[tuple[Doubles, Doubles, npt.NDArray[np.bool_]]]:
    """Yield finite positions of both in float64, few at a time, and which of the chunk they are."""
    step = max(1, _CHUNK_ELEMENTS // reference.shape[1])
    for start in range(0, len(reference), step):
        ref, cand = reference[start : start + step], candidate[start : start + step]
        finite = np.logical_and(np.isfinite(ref).all(axis=1), np.isfinite(cand).all(axis=1))
        yield ref[finite].astype(np.float64), cand[finite].astype(np.float64), finite


def _softmax(logits: Doubles) -> tuple[Doubles, Doubles]:
    """Compute the logarithm of the softmax at each position, and the softmax."""
    log = logits - logits.max(axis=-1, keepdims=True)
    powers = np.exp(log)
    total = powers.sum(axis=-1, keepdims=True)
    log -= np.log(total)
    powers /= total
    return log, powers


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))
