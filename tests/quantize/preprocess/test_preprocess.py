"""Decisions from a calibration run: what is smoothed, rotated, massive or left as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from quantize_models import KINDS, error, logits, plain

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import QuantizeError
from edgetie.graph.model_files import load_model, write_models
from edgetie.passes.base import run_passes
from edgetie.passes.gemm_to_matmul import GemmToMatMul
from edgetie.passes.remove_flatten_reshapes import RemoveFlattenReshapes
from edgetie.quantize.calibration.layerwise_run import CalibrationInput
from edgetie.quantize.formats.scheme_formats import weight_formats
from edgetie.quantize.preprocess.preprocess import PreprocessReport, preprocess_model
from edgetie.quantize.weights.array_spill import ArraySpill
from edgetie.quantize.weights.gptq import hessian
from edgetie.targets import SCHEMES
from edgetie.ties.groups import find_ties

INPUTS = CalibrationInput(np.random.default_rng(0).integers(3, 320, 600).tolist())


def preprocess(
    path: Path, inputs: CalibrationInput = INPUTS, scheme: str = "int8", **options: Any
) -> tuple[ir.Model, PreprocessReport]:
    bundle = open_bundle(path)
    model = load_model(bundle.model_path)
    run_passes(model, [], [GemmToMatMul(), RemoveFlattenReshapes()])
    formats = weight_formats(SCHEMES[scheme])
    assert formats is not None
    report = preprocess_model(
        model,
        find_ties(model),
        bundle,
        bundle.model_path,
        inputs,
        lambda linear_op: formats[linear_op.transposed],
        ArraySpill(path.parent),
        **options,
    )
    return model, report


def test_outliers_are_rotated_and_logits_stay(tmp_path: Path) -> None:
    path = plain(tmp_path, head="Transpose", outliers=True)
    model, report = preprocess(path)
    assert (report.smoothed, report.rotated, report.note) == (0, 2, "")
    assert report.hessians.keys() == {"middle", "table"}
    (written,) = write_models({"m.onnx": model}, tmp_path, data="m.data", same={})
    assert error(logits(path), logits(written)) < 1e-4


def test_int4_rotates_the_tied_table_only(tmp_path: Path) -> None:
    path = plain(tmp_path, head="Transpose", outliers=True)
    assert [preprocess(path, scheme=name)[1].rotated for name in ("int4", "int4-all")] == [1, 2]


def test_transforms_undo_what_was_done_to_the_weights(tmp_path: Path) -> None:
    path = plain(tmp_path, head="Transpose", outliers=True)
    before = load_model(path).graph.initializers
    _, report = preprocess(path)
    tokens = np.random.default_rng(1).normal(size=(50, 64)).astype(np.float32)
    for name, linear_ops in report.linear_ops.items():
        for linear_op in linear_ops:
            weight = before[str(linear_op.weight.name)].const_value.numpy()  # type: ignore[union-attr]
            expected = tokens @ (weight if linear_op.transposed else weight.T)
            result = report.transforms[name](tokens) @ linear_op.read_weight().T
            np.testing.assert_allclose(result, expected, atol=1e-3 * np.abs(expected).max())
            shape = report.hessians[str(linear_op.weight.name)]().shape
            assert shape == hessian(tokens).shape


def test_fixed_weights_do_not_change(tmp_path: Path) -> None:
    path = plain(tmp_path, head="Transpose", outliers=True)
    model, report = preprocess(path, fixed=["middle", "table"])
    assert report.note.startswith("nothing: no activation")
    before = load_model(path).graph.initializers
    for name in ("middle", "table", "gain"):
        np.testing.assert_array_equal(
            model.graph.initializers[name].const_value.numpy(),  # type: ignore[union-attr]
            before[name].const_value.numpy(),  # type: ignore[union-attr]
        )


def test_a_model_that_cannot_be_run_is_noted(tmp_path: Path) -> None:
    path = plain(tmp_path)
    model = onnx.load(path)
    model.graph.node[3].op_type, model.graph.node[3].domain = "Secret", "elsewhere"
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    onnx.save(model, path)
    assert preprocess(path)[1].note.startswith("nothing: ")
    feeds = {"input_ids": np.array([[5, 6, 7]])}
    with pytest.raises(QuantizeError, match="calibration cannot run it"):
        preprocess(path, CalibrationInput(feeds=[feeds]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_exported_models_keep_their_logits(float_bundle: Any, tmp_path: Path, kind: str) -> None:
    model, report = preprocess(float_bundle(kind))
    assert report.smoothed >= 3
    (written,) = write_models({"m.onnx": model}, tmp_path, data="m.data", same={})
    before = logits(float_bundle(kind) / "model.onnx")
    np.testing.assert_allclose(logits(written), before, atol=1e-3 * np.abs(before).max())
