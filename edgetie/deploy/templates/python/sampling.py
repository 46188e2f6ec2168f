"""Select the next token, as edgetie generate does."""

from collections.abc import Iterable

import numpy as np


class Sampler:
    """Select tokens by their logits; the same seed draws the same tokens."""

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> None:
        """Check the options.

        Args:
            temperature: 0 always selects the most likely token; 1 samples as the model learned.
            top_k: draw among the most likely tokens.
            top_p: draw among the most likely tokens that together reach this probability.
            repetition_penalty: above 1 makes tokens that occurred before less likely.
            seed: ``None`` for another one each time.

        Raises:
            ValueError: if an option is out of range.
        """
        for name, valid in (
            ("temperature must be 0 or more", temperature >= 0),
            ("top_k must be 1 or more", top_k is None or top_k >= 1),
            ("top_p must be above 0 and at most 1", top_p is None or 0 < top_p <= 1),
            ("repetition_penalty must be above 0", repetition_penalty > 0),
            ("seed must be 0 or more", seed is None or seed >= 0),
        ):
            if not valid:
                raise ValueError(name)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.penalty = repetition_penalty
        self.random = np.random.default_rng(seed)
        self.seen: set[int] = set()

    def see(self, tokens: Iterable[int]) -> None:
        """Remember tokens that occur, for the repetition penalty."""
        self.seen.update(tokens)

    def select(self, logits: np.ndarray) -> int:
        """Select a token; ``logits`` has one value for each."""
        if self.penalty != 1:
            seen = list(self.seen)
            logits = logits.copy()
            logits[seen] *= np.where(logits[seen] > 0, 1 / self.penalty, self.penalty)
        if self.temperature == 0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / self.temperature
        weights = np.exp(scaled - scaled.max())
        ids = np.arange(len(weights))
        if self.top_k and self.top_k < len(weights):
            ids = np.argpartition(weights, -self.top_k)[-self.top_k :]
        ids = ids[np.argsort(-weights[ids], kind="stable")]  # the most likely first
        weights = weights[ids]
        if self.top_p:
            reached = weights.cumsum() / weights.sum()
            weights[1:] *= reached[:-1] < self.top_p
        reached = weights.cumsum()
        return int(ids[(reached <= self.random.random() * reached[-1]).sum()])
