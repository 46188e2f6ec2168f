"""A tied table becomes one int8 table, whatever stands between it and its uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from table_forms import (
    BRANCHES,
    DEQUANTIZED,
    EINSUMS,
    IDS,
    MOVED,
    Form,
    run,
    stored_tables,
)

from edgetie.errors import QuantizeError
from edgetie.quantize.quantizer import quantize_model

FORMS = MOVED | EINSUMS


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_one_table_of_8_bits(tmp_path: Path, form: Form) -> None:
    path = form.save(tmp_path / "plain.onnx")
    report = quantize_model(path, tmp_path / "int8")
    result = report.bundle.model_path
    expected, actual = run(path), run(result)
    assert np.linalg.norm(actual - expected) < 0.03 * np.linalg.norm(expected)
    assert stored_tables(result) == ["UINT8"]
    assert (report.float_weights, report.dequantized) == ((), {})
    assert [group.dtype for group in report.manifest.ties][:1] == ["UINT8"]


@pytest.mark.parametrize("form", DEQUANTIZED.values(), ids=DEQUANTIZED)
def test_a_use_that_no_operator_can_pass_gets_it_dequantized(tmp_path: Path, form: Form) -> None:
    path = form.save(tmp_path / "plain.onnx")
    report = quantize_model(path, tmp_path / "int8")
    result = report.bundle.model_path
    expected, actual = run(path), run(result)
    assert np.linalg.norm(actual - expected) < 0.03 * np.linalg.norm(expected)
    assert stored_tables(result) == ["UINT8"]
    assert list(report.dequantized) == ["table"]
    with pytest.raises(QuantizeError, match=r"the tied weight table: .* would read it dequantized"):
        quantize_model(path, tmp_path / "strict", require_tied_int8=True)


@pytest.mark.parametrize("form", BRANCHES.values(), ids=BRANCHES)
def test_uses_in_branches(tmp_path: Path, form: Form) -> None:
    path = form.save(tmp_path / "plain.onnx")
    report = quantize_model(path, tmp_path / "int8", require_tied_int8=True)
    result = report.bundle.model_path
    for ids in (IDS, IDS % 40):
        expected, actual = run(path, ids), run(result, ids)
        assert np.linalg.norm(actual - expected) < 0.03 * np.linalg.norm(expected)
    assert stored_tables(result) == ["UINT8"]


@pytest.mark.parametrize(
    "scheme", ["int8-mapped", "int8-plain", "int8-dynamic", "int8-static", "int4", "int4-all"]
)
@pytest.mark.parametrize("name", ["factors of rows", "a low-rank update at both uses", "Tanh"])
def test_other_schemes(tmp_path: Path, scheme: str, name: str) -> None:
    form = replace((MOVED | DEQUANTIZED)[name], opset=21)
    path = form.save(tmp_path / "plain.onnx")
    report = quantize_model(path, tmp_path / "quantized", scheme=scheme)
    expected, actual = run(path), run(report.bundle.model_path)
    limit = {"int8-static": 0.1, "int4": 0.1, "int4-all": 0.2}.get(scheme, 0.03)
    assert np.linalg.norm(actual - expected) < limit * np.linalg.norm(expected)
    (dtype,) = stored_tables(report.bundle.model_path)
    assert dtype in ("INT8", "UINT8")
