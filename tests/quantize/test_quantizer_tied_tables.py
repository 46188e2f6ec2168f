"""A tied table becomes one int8 table, whatever stands between it and its uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from table_forms import DEQUANTIZED, EINSUMS, MOVED, Form, run, stored_tables

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
