"""Candidates: the same weights in several precisions, and graphs over some of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from quantize_models import error, logits, plain

from edgetie.bundle.bundle import Bundle
from edgetie.harness.accuracy.references import BundleReference
from edgetie.quantize.calibration.layerwise_run import CalibrationInput
from edgetie.quantize.formats.toggle import TOGGLE_INPUT
from edgetie.quantize.mixed_precision.candidates import (
    FLOAT,
    HIGHER_PRECISION,
    QUANTIZED,
    MixedPrecisionCandidates,
)
from edgetie.quantize.model_quantizer import ModelQuantizer
from edgetie.quantize.source_models import read_source_models
from edgetie.quantize.weights.array_spill import ArraySpill
from edgetie.targets import SCHEMES

INPUTS = CalibrationInput(np.random.default_rng(0).integers(3, 320, 600).tolist())


@pytest.fixture
def candidates(tmp_path: Path, request: pytest.FixtureRequest) -> MixedPrecisionCandidates:
    """Of the scheme that is the fixture's parameter, int4 by default."""
    scheme = SCHEMES[getattr(request, "param", "int4")]
    source = read_source_models(plain(tmp_path))
    quantizer = ModelQuantizer(scheme, source.bundle, source.models, source.ties)
    quantizer.preprocess(INPUTS, ArraySpill(tmp_path), "percentile")
    directory = tmp_path / "out"
    directory.mkdir()
    bundle = Bundle(directory, directory / "model.onnx", source.bundle.manifest)
    result = MixedPrecisionCandidates(bundle, quantizer)
    result.write_versions()
    return result


def test_bytes_are_those_that_files_grow_by(candidates: MixedPrecisionCandidates) -> None:
    directory = candidates.bundle.directory
    sizes = {
        name: (directory / name).stat().st_size for name in (QUANTIZED, FLOAT, HIGHER_PRECISION)
    }
    assert candidates.embeddings == ["table"]
    assert candidates.float_bytes.keys() == {"middle"}
    quantized = 64 * 64 * 4 - candidates.float_bytes["middle"]
    assert 64 * 64 // 2 < quantized < 64 * 64 // 2 + 1000  # 4 bits, scales and zero points
    grown = sizes[HIGHER_PRECISION] - sizes[QUANTIZED]
    assert candidates.higher_precision_bytes["middle"] == pytest.approx(grown, abs=256)
    assert sizes[FLOAT] >= 4 * 64 * (64 + 320)


@pytest.mark.parametrize("candidates", ["int8-mapped"], indirect=True)
def test_schemes_without_a_higher_precision(candidates: MixedPrecisionCandidates) -> None:
    assert candidates.higher_precision_bytes == {}
    assert candidates.float_bytes.keys() == {"middle"}
    assert not (candidates.bundle.directory / HIGHER_PRECISION).exists()


def test_each_candidate_reads_weights_that_are_written(
    candidates: MixedPrecisionCandidates, tmp_path: Path
) -> None:
    path, reference = candidates.bundle.model_path, logits(tmp_path / "plain.onnx")
    errors = []
    for float_weights, higher_precision in ([], []), ([], ["middle"]), (["middle"], []):
        candidates.write(float_weights, higher_precision)
        errors.append(error(reference, logits(path)))
        graph = onnx.load(path, load_external_data=False).graph
        files = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
        assert QUANTIZED in files
        assert (FLOAT in files, HIGHER_PRECISION in files) == (
            bool(float_weights),
            bool(higher_precision),
        )
    assert errors[0] > 2 * errors[1] > 2 * errors[2]


def test_one_weight_at_a_time_is_quantized(
    candidates: MixedPrecisionCandidates, tmp_path: Path
) -> None:
    reference = BundleReference(read_source_models(tmp_path / "plain.onnx").bundle)
    ids = np.random.default_rng(2).integers(3, 320, (1, 20))
    exact = reference.logits(ids)
    candidates.write_toggle_graph()
    model = BundleReference(candidates.bundle)
    errors = []
    for index in (-1, list(candidates.float_bytes).index("middle")):
        model.choices = {TOGGLE_INPUT: np.array(index)}
        errors.append(error(exact, model.logits(ids)))
    assert errors[0] < 1e-5 < errors[1]
