"""Sampling against transformers' own processors, and its chances against the probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgetie.errors import EdgetieError
from edgetie.runtime.decoding.sampling import (
    Sampling,
    candidates,
    draw,
    penalize_repetition,
    sample,
)

BATCH, VOCABULARY = 3, 700


def some_logits(seed: int = 0, spread: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(scale=spread, size=(BATCH, VOCABULARY)).astype(np.float32)


def dense(ids: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    whole = np.zeros((BATCH, VOCABULARY))
    np.put_along_axis(whole, ids, probabilities, axis=-1)
    return whole


def from_transformers(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None
) -> np.ndarray:
    import torch
    from transformers.generation import logits_process as known

    processors: list[Any] = [known.TemperatureLogitsWarper(temperature)]
    if top_k is not None:
        processors.append(known.TopKLogitsWarper(top_k))
    if top_p is not None:
        processors.append(known.TopPLogitsWarper(top_p))
    scores = torch.from_numpy(logits).double()
    for processor in processors:
        scores = processor(None, scores)
    return scores.softmax(-1).numpy()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("top_k", [None, 1, 40, VOCABULARY, 10**6])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.9, 1.0])
def test_candidates_are_those_of_transformers(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = some_logits()
    ids, probabilities = candidates(logits, temperature, top_k, top_p)
    expected = from_transformers(logits, temperature, top_k, top_p)
    np.testing.assert_allclose(dense(ids, probabilities), expected, atol=1e-12)
    assert (np.diff(probabilities, axis=-1) <= 0).all()


def test_repetition_penalty_is_that_of_transformers() -> None:
    import torch
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    logits = some_logits()
    history = np.array([[1, 5, 5, 9], [0, 0, 0, 0], [699, 3, 2, 1]])
    seen = np.zeros(logits.shape, np.bool_)
    np.put_along_axis(seen, history, True, axis=-1)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(
        torch.from_numpy(history), torch.from_numpy(logits)
    )
    np.testing.assert_allclose(penalize_repetition(logits, seen, 1.3), expected, rtol=1e-6)


def test_draws_follow_the_probabilities() -> None:
    ids = np.tile(np.array([[30, 4, 7, 2]]), (20000, 1))
    probabilities = np.tile(np.array([[0.5, 0.3, 0.2, 0.0]]), (20000, 1))
    drawn = draw(ids, probabilities, np.random.default_rng(1))
    shares = [float((drawn == token).mean()) for token in (30, 4, 7, 2)]
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2, 0.0], atol=0.015)


def test_greedy_and_small_top_k_take_the_best() -> None:
    logits = some_logits()
    best = logits.argmax(-1)
    rng = np.random.default_rng(0)
    assert (sample(logits, Sampling(), rng) == best).all()
    assert (sample(logits, Sampling(temperature=5, top_k=1), rng) == best).all()
    assert (sample(logits, Sampling(temperature=5, top_p=1e-9), rng) == best).all()


def test_the_penalty_also_counts_for_greedy() -> None:
    logits = some_logits()
    seen = np.zeros(logits.shape, np.bool_)
    seen[np.arange(BATCH), logits.argmax(-1)] = True
    chosen = sample(logits, Sampling(repetition_penalty=50), np.random.default_rng(0), seen)
    assert (chosen != logits.argmax(-1)).all()


def test_a_seed_repeats_and_another_does_not() -> None:
    sampling = Sampling(temperature=1.5, top_p=0.95)
    runs = [
        [sample(some_logits(step), sampling, rng).tolist() for step in range(20)]
        for rng in (np.random.default_rng(seed) for seed in (4, 4, 5))
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], named: str) -> None:
    with pytest.raises(EdgetieError, match=named):
        Sampling(**values)
