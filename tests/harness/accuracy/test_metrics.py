"""Streamed metrics equal the definitions, computed at once and naively."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgetie.harness.accuracy import metrics, samples
from edgetie.harness.accuracy.metrics import (
    EmbeddingErrors,
    Interval,
    LogitErrors,
    PredictionErrors,
    common_prefix,
    median_interval,
)


def log_softmax(row: np.ndarray) -> list[float]:
    total = math.log(math.fsum(math.exp(float(x)) for x in row))
    return [float(x) - total for x in row]


@pytest.mark.parametrize("chunk", [1, 100, 1 << 21])
def test_metrics_equal_their_definitions(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", chunk)
    rng = np.random.default_rng(1)
    errors, predictions = LogitErrors(), PredictionErrors()
    distances, divergences, same, nats, ref_nats, largest = [], [], [], [], [], 0.0
    for length in (7, 1, 12):
        ref = rng.normal(scale=3, size=(length, 31)).astype(np.float32)
        act = ref + rng.normal(scale=0.8, size=ref.shape).astype(np.float32)
        ids = rng.integers(0, 31, length)
        errors.add(ref, act)
        predictions.add(ref, act, samples.next_tokens(ids))
        largest = max(largest, float(np.abs(ref).max()))
        for i in range(length):
            p, q = log_softmax(ref[i]), log_softmax(act[i])
            distances += [abs(float(a) - float(b)) for a, b in zip(act[i], ref[i], strict=True)]
            divergences.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
            same.append(p.index(max(p)) == q.index(max(q)))
            if i + 1 < length:
                ref_nats.append(-p[ids[i + 1]])
                nats.append(-q[ids[i + 1]])
    measured = predictions.metrics
    assert errors.positions == measured.predictions == 20
    assert measured.tokens == 17
    assert 0 < sum(same) < 20
    assert errors.max_abs_error == pytest.approx(max(distances))
    assert errors.mean_abs_error == pytest.approx(np.mean(distances))
    assert errors.relative_error == pytest.approx(max(distances) / largest)
    assert measured.mean_kl_divergence == pytest.approx(np.mean(divergences))
    assert measured.top1_agreement == pytest.approx(np.mean(same))
    assert measured.top1_agreement_error == pytest.approx(np.std(same) / np.sqrt(len(same)))
    assert measured.perplexity == pytest.approx(math.exp(np.mean(nats)))
    assert measured.reference_perplexity == pytest.approx(math.exp(np.mean(ref_nats)))
    increase = math.exp(np.mean(nats)) / math.exp(np.mean(ref_nats)) - 1
    assert measured.perplexity_increase == pytest.approx(increase)
    spread = np.std(np.subtract(nats, ref_nats), ddof=1) / math.sqrt(17)
    assert measured.perplexity_increase_error == pytest.approx((1 + increase) * spread)


def test_positions_that_are_not_finite_are_counted_and_left_out() -> None:
    ref = np.arange(12, dtype=np.float32).reshape(4, 3)
    act = ref + 1
    act[1, 2], act[2, 0] = np.nan, np.inf
    ids = np.array([0, 1, 2, 0])
    errors, predictions = LogitErrors(), PredictionErrors()
    errors.add(ref, act)
    predictions.add(ref, act, samples.next_tokens(ids))
    assert (errors.positions, errors.nonfinite) == (2, 2)
    assert errors.max_abs_error == errors.mean_abs_error == 1
    measured = predictions.metrics
    assert (measured.predictions, measured.tokens) == (2, 1)
    assert measured.perplexity == pytest.approx(math.exp(-log_softmax(act[0])[1]))
    act[:] = np.nan
    nothing = LogitErrors()
    nothing.add(ref, act)
    assert math.isnan(nothing.max_abs_error)
    assert math.isnan(PredictionErrors().metrics.perplexity)


def test_equal_logits_are_perfect() -> None:
    logits = np.random.default_rng(2).normal(size=(5, 9)).astype(np.float32)
    errors, predictions = LogitErrors(), PredictionErrors()
    errors.add(logits, logits)
    predictions.add(logits, logits, samples.next_tokens(np.arange(5)))
    assert errors.relative_error == 0
    measured = predictions.metrics
    assert measured.mean_kl_divergence == measured.perplexity_increase == 0
    assert measured.top1_agreement == 1


def test_common_prefix_ends_at_the_first_difference() -> None:
    assert common_prefix([1, 2, 3, 4], [1, 2, 9, 4]) == 2
    assert common_prefix([1, 2], [1, 2]) == 2
    assert common_prefix([1], [2]) == 0


def test_tokens_that_both_leave_out_do_not_hide_an_error() -> None:
    rng = np.random.default_rng(2)
    ref = rng.normal(scale=3, size=(5, 40)).astype(np.float32)
    act = ref + np.float32(0.5)
    largest = float(np.abs(ref[:, :30]).max())
    ref[:, 30:], act[:, 30:] = -1e9, np.finfo(np.float32).min
    errors = LogitErrors()
    errors.add(ref, act)
    assert errors.max_abs_error == pytest.approx(0.5, rel=1e-5)
    assert errors.relative_error == pytest.approx(0.5 / largest, rel=1e-5)
    act[0, 30] = 0.0  # which the other model never predicts
    errors.add(ref, act)
    assert errors.relative_error > 1


def test_interval_of_a_median() -> None:
    assert median_interval([3, 1, 2, 5, 4]) == Interval(1, 5, 0.9375)
    assert median_interval(range(6)) == Interval(0, 5, 0.96875)
    found = median_interval(range(20))  # the 6th and the 15th, by the binomial table
    assert (found.low, found.high) == (5, 14)
    assert found.level == pytest.approx(0.9586, abs=1e-4)
    assert median_interval([7.0]) == Interval(7.0, 7.0, 0.0)
    for count in (64, 65, 1030):
        found = median_interval(range(count))
        assert found.low < count / 2 < found.high
        assert 0.95 <= found.level < 0.97


def test_errors_of_embeddings() -> None:
    errors = EmbeddingErrors()
    assert math.isnan(errors.similarity)
    assert math.isnan(errors.relative_error)
    one = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    errors.add(one[None], np.array([[[4.0, 3.0], [0.0, 0.0]]], np.float32))
    errors.add(one[:1], one[:1])
    assert errors.similarity == pytest.approx((24 / 25 + 1) / 2)
    assert errors.relative_error == pytest.approx(math.sqrt(2 / 50))
