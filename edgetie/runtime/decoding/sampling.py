"""Sample the next token: pure functions on logits, for a whole batch at once."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetie.errors import EdgetieError

_FIRST_GUESS = 256  # candidates tried first when only top_p limits them


@dataclass(frozen=True)
class Sampling:
    """How tokens are selected.

    Attributes:
        temperature: 0 always selects the most likely token; 1 samples the model's distribution.
        top_k: only the ``top_k`` most likely tokens can be drawn.
        top_p: only the smallest set of tokens whose probabilities reach ``top_p``.
        repetition_penalty: above 1 makes tokens that occurred before less likely.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        top_p, penalty = self.top_p, self.repetition_penalty
        for name, valid, limits in (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", top_p is None or 0 < top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < penalty < math.inf, "above 0"),
        ):
            if not valid:
                raise EdgetieError(f"must be {limits}", parameter=name, value=getattr(self, name))


def sample(
    logits: NDArray[np.float32],
    sampling: Sampling,
    rng: np.random.Generator,
    seen: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Select one token per sequence, ``(batch,)``.

    Args:
        logits: ``(batch, vocabulary)``.
        sampling: how.
        rng: draws one number per sequence unless greedy.
        seen: ``(batch, vocabulary)``, tokens that occurred, for the repetition penalty.
    """
    if seen is not None and sampling.repetition_penalty != 1:
        logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        best: NDArray[np.int64] = logits.argmax(axis=-1)
        return best
    ids, probabilities = candidates(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    return draw(ids, probabilities, rng)


def penalize_repetition(
    logits: NDArray[np.float32], seen: NDArray[np.bool_], penalty: float
) -> NDArray[np.float32]:
    """Divide positive logits of seen tokens by ``penalty`` and multiply negative ones by it."""
    factor = np.where(logits > 0, 1 / penalty, penalty)
    return np.where(seen, logits * factor, logits).astype(np.float32)


def candidates(
    logits: NDArray[np.float32],
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Compute ids and probabilities of the tokens that can be drawn, most likely first.

    Both are ``(batch, count)``; a sequence with fewer candidates than another ends in
    probabilities of 0. ``top_p`` is of the distribution that ``top_k`` leaves.
    """
    vocabulary = logits.shape[-1]
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    limit = min(top_k or vocabulary, vocabulary)
    mass = 1.0 if top_p is None else top_p
    count = min(_FIRST_GUESS, limit) if mass < 1 and limit == vocabulary else limit
    while True:
        ids = _most_likely(weights, count)
        selected = np.take_along_axis(weights, ids, axis=-1)
        if mass == 1:
            break
        whole = (weights if limit == vocabulary else selected).sum(axis=-1, keepdims=True)
        reached = selected.cumsum(axis=-1) / whole
        if count == limit or (reached[:, -1] >= mass).all():
            selected[:, 1:] *= reached[:, :-1] < mass
            break
        count = min(count * 8, limit)
    return ids, selected / selected.sum(axis=-1, keepdims=True)


def draw(
    ids: NDArray[np.int64], probabilities: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw one of ``ids`` per sequence; both arrays are ``(batch, count)``."""
    reached = probabilities.cumsum(axis=-1)
    threshold = rng.random((len(ids), 1)) * reached[:, -1:]
    index = (reached <= threshold).sum(axis=-1, keepdims=True)
    return np.take_along_axis(ids, index, axis=-1)[:, 0]


def _most_likely(weights: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of each sequence's ``count`` largest weights, largest first."""
    top = np.argpartition(weights, -count, axis=-1)[:, -count:]
    order = np.argsort(-np.take_along_axis(weights, top, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(top, order, axis=-1).astype(np.int64)
