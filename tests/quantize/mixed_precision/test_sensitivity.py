"""What quantizing single weights costs."""

from __future__ import annotations

import time
from pathlib import Path

import models
import numpy as np
import pytest
from quantize_models import plain

from edgetie.bundle.bundle import Bundle
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.progress import Stages
from edgetie.quantize.calibration.activations import CalibrationText
from edgetie.quantize.calibration.layerwise_run import CalibrationInput
from edgetie.quantize.mixed_precision.accuracy_meter import AccuracyMeter
from edgetie.quantize.mixed_precision.candidates import MixedPrecisionCandidates
from edgetie.quantize.mixed_precision.sensitivity import (
    Cost,
    Precision,
    measure_costs,
    names_by_precision,
)
from edgetie.quantize.model_quantizer import ModelQuantizer
from edgetie.quantize.source_models import read_source_models
from edgetie.quantize.weights.array_spill import ArraySpill
from edgetie.targets import SCHEMES


@pytest.mark.parametrize("is_late", [False, True])
def test_each_weight_is_measured_alone(tmp_path: Path, is_late: bool) -> None:
    source = read_source_models(plain(tmp_path))
    quantizer = ModelQuantizer(SCHEMES["int4"], source.bundle, source.models, source.ties)
    tokens = np.random.default_rng(0).integers(3, models.VOCAB, 600).tolist()
    quantizer.preprocess(CalibrationInput(tokens), ArraySpill(tmp_path), "percentile")
    (tmp_path / "out").mkdir()
    bundle = Bundle(tmp_path / "out", tmp_path / "out/model.onnx", source.bundle.manifest)
    candidates = MixedPrecisionCandidates(bundle, quantizer)
    candidates.write_versions()
    meter = AccuracyMeter(source.bundle, CalibrationText([], tokens, "random"), Thresholds())
    deadline = {"deadline": time.perf_counter()} if is_late else {}
    costs = measure_costs(candidates, meter, Stages(), **deadline)
    if is_late:
        assert costs is None
        return
    assert costs is not None
    ((name, kl),) = [(cost.name, cost.kl) for cost in costs]
    assert (name, kl > 0) == ("middle", True)


def test_bytes_and_names_follow_from_precisions() -> None:
    precisions = Precision.SCHEME, Precision.HIGHER, Precision.FLOAT
    costs = [Cost(each.name, 1.0, 300, 100, each) for each in precisions]
    assert [cost.added_bytes for cost in costs] == [0, 100, 300]
    assert names_by_precision(costs) == ({"FLOAT"}, {"HIGHER"})
