"""A model preprocessed once and quantized several times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from quantize_models import error, logits, plain

from edgetie.errors import QuantizeError
from edgetie.graph.model_files import write_models
from edgetie.quantize.calibration.layerwise_run import CalibrationInput
from edgetie.quantize.model_quantizer import ModelQuantizer
from edgetie.quantize.source_models import read_source_models
from edgetie.quantize.weights.array_spill import ArraySpill
from edgetie.targets import SCHEMES, find_scheme

INPUTS = CalibrationInput(np.random.default_rng(0).integers(3, 320, 600).tolist())


def make(path: Path, scheme: str = "int8") -> ModelQuantizer:
    source = read_source_models(path)
    return ModelQuantizer(SCHEMES[scheme], source.bundle, source.models, source.ties, source.shared)


def preprocessed(path: Path, scheme: str = "int8") -> ModelQuantizer:
    quantizer = make(path, scheme)
    quantizer.preprocess(INPUTS, ArraySpill(path.parent), "percentile")
    return quantizer


def arrays(models: dict[str, ir.Model]) -> dict[str, np.ndarray]:
    (model,) = models.values()
    return {
        name: value.const_value.numpy()  # type: ignore[union-attr]
        for name, value in model.graph.initializers.items()
    }


def test_only_preprocess_changes_the_models(tmp_path: Path) -> None:
    quantizer = make(plain(tmp_path, outliers=True))
    (model,) = quantizer.models.values()
    before = [node.op_type for node in model.graph]
    assert quantizer.reports["model.onnx"].hessians == {}
    quantizer.preprocess(INPUTS, ArraySpill(tmp_path), "percentile")
    assert [node.op_type for node in model.graph] != before
    assert quantizer.reports["model.onnx"].hessians.keys() == {"middle", "table"}


def test_copies_are_equal_and_leave_the_float_models(tmp_path: Path) -> None:
    quantizer = preprocessed(plain(tmp_path))
    floats = arrays(quantizer.models)
    first, second = (arrays(quantizer.quantize(copy=True).models) for _ in range(2))
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    for name, array in arrays(quantizer.models).items():
        np.testing.assert_array_equal(array, floats[name])


def test_quantized_weights_and_those_that_stay(tmp_path: Path) -> None:
    quantizer = preprocessed(plain(tmp_path))
    result = quantizer.quantize(copy=True)
    assert result.embeddings == {"model.onnx": ["table"]}
    (linear,) = result.linear_initializers.values()
    assert linear.keys() == {"middle"}
    assert set(linear["middle"]) <= arrays(result.models).keys()
    assert (result.block_sizes, result.skipped) == ({"64": 2}, [])
    floats = quantizer.quantize(float_weights=["middle"], copy=True)
    assert floats.block_sizes == {"64": 1}
    assert arrays(floats.models)["middle"].dtype == np.float32
    with pytest.raises(QuantizeError, match="no MatMul or Gather over a constant"):
        quantizer.quantize(float_weights=["middle", "table"], copy=True)


@pytest.mark.parametrize(("scheme", "sizes"), [("int8", {"64": 1, "16": 1}), ("int8-mapped", None)])
def test_higher_precision(tmp_path: Path, scheme: str, sizes: dict[str, int] | None) -> None:
    quantizer = preprocessed(plain(tmp_path), scheme)
    assert quantizer.has_higher_precision == (sizes is not None)
    if sizes is not None:
        result = quantizer.quantize(higher_precision=["middle"], copy=True)
        assert result.block_sizes == sizes


@pytest.mark.parametrize("scheme", ["int8", "int8-mapped", "int8-static", "int4", "fp16"])
def test_logits_stay_close(tmp_path: Path, scheme: str) -> None:
    path = plain(tmp_path)
    result = preprocessed(path, scheme).quantize()
    (written,) = write_models(result.models, tmp_path, data="model.data", same=result.same)
    assert error(logits(path), logits(written)) < {"int4": 0.15, "int8-static": 0.05}.get(
        scheme, 0.03
    )


def test_nothing_is_calibrated_for_fp16(tmp_path: Path) -> None:
    quantizer = preprocessed(plain(tmp_path), "fp16")
    assert quantizer.reports["model.onnx"].note.startswith("nothing")


def test_static_scales_need_a_model_that_runs(tmp_path: Path) -> None:
    path = plain(tmp_path)
    source = read_source_models(path)
    quantizer = ModelQuantizer(
        find_scheme(scheme="int8-static"),
        source.bundle,
        source.models,
        source.ties,
        ["middle", "table"],
    )
    with pytest.raises(QuantizeError, match="ranges of its activations are not known"):
        quantizer.preprocess(INPUTS, ArraySpill(tmp_path), "percentile")
