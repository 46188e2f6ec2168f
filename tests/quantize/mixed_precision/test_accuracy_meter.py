"""Measuring limits on no more text than a decision needs."""

from __future__ import annotations

import time
from pathlib import Path

import models
import numpy as np
import pytest
from quantize_models import plain

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.errors import QuantizeError
from edgetie.harness.accuracy.metrics import PredictionMetrics
from edgetie.harness.accuracy.references import BundleReference
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.quantize.calibration.activations import CalibrationText
from edgetie.quantize.mixed_precision.accuracy_meter import AccuracyMeter
from edgetie.quantize.quantizer import quantize_model

WINDOWS = 20


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[Bundle, Bundle]:
    """A float model, and the same in int4."""
    file = plain(tmp_path)
    return open_bundle(file), quantize_model(file, tmp_path / "int4", scheme="int4-all").bundle


def text(count: int) -> CalibrationText:
    tokens = np.random.default_rng(1).integers(3, models.VOCAB, count).tolist()
    return CalibrationText([], tokens, "random tokens")


def measure(bundles: tuple[Bundle, Bundle], limits: Thresholds) -> PredictionMetrics:
    return AccuracyMeter(bundles[0], text(256 * WINDOWS), limits).measure(bundles[1]).metrics


def test_a_text_too_short_to_measure_on(tmp_path: Path) -> None:
    bundle = open_bundle(plain(tmp_path))
    with pytest.raises(QuantizeError, match="has 1 tokens after those calibrated on"):
        AccuracyMeter(bundle, text(1), Thresholds())


def test_the_float_model_has_no_divergence(bundles: tuple[Bundle, Bundle]) -> None:
    meter = AccuracyMeter(bundles[0], text(600), Thresholds(max_kl=1.0))
    metrics = meter.measure(bundles[0]).metrics
    assert metrics.mean_kl_divergence == pytest.approx(0, abs=1e-9)
    assert (metrics.top1_agreement, metrics.predictions) == (1, 600)
    assert meter.divergence(BundleReference(bundles[0])) == pytest.approx(0, abs=1e-9)


def test_a_limit_that_is_far_needs_a_part_of_the_text(bundles: tuple[Bundle, Bundle]) -> None:
    whole = measure(bundles, Thresholds(min_top1=0.0, max_kl=0.0))
    assert whole.predictions == 6 * 256  # fewer windows have no certain spread
    exact = AccuracyMeter(bundles[0], text(5 * 256), Thresholds()).measure(bundles[1]).metrics
    for limits in (
        Thresholds(max_kl=10 * exact.mean_kl_divergence),
        Thresholds(max_kl=0.1 * exact.mean_kl_divergence),
        Thresholds(max_kl=10 * exact.mean_kl_divergence, min_top1=0.0),
    ):
        assert measure(bundles, limits).predictions < WINDOWS * 256 / 2


def test_a_limit_that_is_near_needs_all_of_the_text(bundles: tuple[Bundle, Bundle]) -> None:
    exact = measure(bundles, Thresholds(max_kl=1e9, min_top1=0.0)).mean_kl_divergence
    for _ in range(3):  # the mean of all windows, which is where no interval lies on one side
        metrics = measure(bundles, Thresholds(max_kl=exact))
        exact = metrics.mean_kl_divergence
    assert metrics.predictions == WINDOWS * 256
    meter = AccuracyMeter(bundles[0], text(256 * WINDOWS), Thresholds(max_kl=exact))
    assert meter.measure(bundles[1]).is_certain  # there is no more text
    part = meter.measure(bundles[1], most_tokens=8 * 256)
    assert (part.metrics.predictions, part.is_certain) == (8 * 256, False)


def test_one_broken_limit_decides(bundles: tuple[Bundle, Bundle]) -> None:
    exact = measure(bundles, Thresholds(max_kl=1e9)).mean_kl_divergence
    assert measure(bundles, Thresholds(max_kl=exact, min_top1=1.0)).predictions < WINDOWS * 256


def test_nothing_is_measured_after_a_deadline(bundles: tuple[Bundle, Bundle]) -> None:
    meter = AccuracyMeter(bundles[0], text(256 * WINDOWS), Thresholds(max_kl=1.0))
    metrics = meter.measure(bundles[1], deadline=time.perf_counter()).metrics
    assert metrics.predictions == 256
