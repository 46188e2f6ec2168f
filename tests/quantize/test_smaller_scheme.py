"""Limits that 8 bits keep in fewer bytes than a mixture of 4 bits and floats."""

from __future__ import annotations

import shutil
from pathlib import Path

import models
import numpy as np
import pytest
from quantize_models import plain

from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.quantize.calibration.activations import CalibrationText
from edgetie.quantize.calibration.layerwise_run import CalibrationInput
from edgetie.quantize.mixed_precision.accuracy_meter import AccuracyMeter
from edgetie.quantize.quantizer import quantize_model
from edgetie.quantize.smaller_scheme import SmallerScheme, find_smaller_scheme
from edgetie.quantize.source_models import read_source_models
from edgetie.targets import SCHEMES

TOKENS = np.random.default_rng(0).integers(3, models.VOCAB, 1200).tolist()


def find(directory: Path, scheme: str, max_kl: float) -> SmallerScheme | None:
    """Next to the float model, which is larger than any quantized one."""
    source = read_source_models(directory / "plain.onnx")
    meter = AccuracyMeter(
        source.bundle, CalibrationText([], TOKENS, "random"), Thresholds(max_kl=max_kl)
    )
    return find_smaller_scheme(
        SCHEMES[scheme],
        source.bundle,
        CalibrationInput(TOKENS),
        meter,
        directory,
    )


@pytest.mark.parametrize("scheme", ["int4", "int4-all"])
def test_8_bits_that_keep_the_limits_are_found(tmp_path: Path, scheme: str) -> None:
    plain(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    int8 = quantize_model(tmp_path / "plain.onnx", tmp_path / "int8")
    names = int8.bundle.model_path.name, "model.onnx.data"
    sizes = [(int8.bundle.directory / name).stat().st_size for name in names]
    shutil.rmtree(tmp_path / "int8")
    assert find(tmp_path, scheme, 1.0) == SmallerScheme("int8", pytest.approx(sum(sizes), abs=2000))
    assert find(tmp_path, scheme, 1e-12) is None
    assert {path.name for path in tmp_path.iterdir()} == files


def test_nothing_is_tried_if_4_bits_are_smaller(tmp_path: Path) -> None:
    limits = Thresholds(max_kl=9)
    report = quantize_model(plain(tmp_path), tmp_path / "out", scheme="int4-all", limits=limits)
    assert report.smaller_scheme is None
    assert "try 8 bits" not in report.seconds


def test_schemes_of_8_bits_have_none(tmp_path: Path) -> None:
    plain(tmp_path)
    assert find(tmp_path, "int8", 1.0) is None
