"""Ranges of activations and outputs, by each calibrator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantize_models import plain

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import QuantizeError
from edgetie.quantize.calibration.activation_ranges import find_activation_ranges
from edgetie.quantize.calibration.layerwise_run import Array, CalibrationInput

TOKENS = np.random.default_rng(0).integers(3, 320, 600)
INPUTS = CalibrationInput(TOKENS.tolist())


def halved(tokens: Array) -> Array:
    return tokens / 2


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_minmax_is_the_range_of_all_windows(tmp_path: Path) -> None:
    path = plain(tmp_path)
    weights = initializers(path)
    x, middle = weights["table"][TOKENS] / 2, weights["middle"].T
    ranges = find_activation_ranges(
        open_bundle(path), path, {"x": halved}, INPUTS, "minmax", {"x": {"middle": lambda: middle}}
    )
    assert ranges["x"] == pytest.approx((x.min(), x.max()))
    output = x @ middle.T
    assert ranges["middle"] == pytest.approx((output.min(), output.max()), rel=1e-5)


@pytest.mark.parametrize("calibrator", ["percentile", "entropy"])
def test_histograms_cut_outliers_off(tmp_path: Path, calibrator: str) -> None:
    path = plain(tmp_path)
    model = onnx.load(path)
    table = np.array(numpy_helper.to_array(model.graph.initializer[0]))
    table[TOKENS[7], 3] = 1000
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "table"))
    onnx.save(model, path)
    low, high = find_activation_ranges(
        open_bundle(path), path, {"x": halved}, INPUTS, calibrator, {}
    )["x"]
    x = table[TOKENS] / 2
    assert x.min() - 1e-6 <= low < 0 < high <= x.max() + 1e-6
    if calibrator == "entropy":
        assert high < 400


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    path = plain(tmp_path)
    bad = np.full((4, 64), np.nan, np.float32)
    with pytest.raises(QuantizeError, match="middle: NaN or infinity"):
        find_activation_ranges(
            open_bundle(path), path, {"x": halved}, INPUTS, "minmax", {"x": {"middle": lambda: bad}}
        )
