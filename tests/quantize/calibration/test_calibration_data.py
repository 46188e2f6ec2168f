"""Calibration data of one's own: a text, a file, inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from quantize_models import error, logits, plain

from edgetie.errors import QuantizeError
from edgetie.quantize.calibration.calibration_data import read_calibration_file
from edgetie.quantize.quantizer import quantize_model


@pytest.mark.slow
def test_calibration_on_inputs_of_ones_own(float_bundle: Any, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(3, models.VOCAB, (5, 1, 40))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    np.savez(tmp_path / "runs.npz", **feeds)
    report = quantize_model(
        float_bundle("Llama"), tmp_path / "out", calibration=tmp_path / "runs.npz"
    )
    assert report.manifest.quantization["calibration"] == "5 runs on own inputs"
    reference = logits(float_bundle("Llama") / "model.onnx")
    assert error(reference, logits(report.bundle.model_path)) < 0.05


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"input_ids": np.zeros((2, 1, 4), np.int64)}, "input attention_mask is missing"),
        ({"ids": np.zeros((2, 1, 4), np.int64)}, "ids is not an input"),
        ({"input_ids": np.zeros((2, 4)), "attention_mask": np.zeros((3, 4))}, "a first axis"),
        ({"input_ids": np.array(3)}, "a first axis"),
        (
            {n: np.full((1, 1, 4), 10**6) for n in ("input_ids", "attention_mask")},
            "calibration cannot run it",
        ),
    ],
)
@pytest.mark.slow
def test_calibration_inputs_that_do_not_fit(
    float_bundle: Any, tmp_path: Path, arrays: dict[str, np.ndarray], words: str
) -> None:
    np.savez(tmp_path / "runs.npz", **arrays)

    with pytest.raises(QuantizeError, match=words):
        quantize_model(float_bundle("Llama"), tmp_path / "out", calibration=tmp_path / "runs.npz")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_file_is_a_path(float_bundle: Any, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(3, models.VOCAB, (2, 1, 40))
    file = tmp_path / "runs.npz"
    np.savez(file, input_ids=ids, attention_mask=np.ones_like(ids))
    report = quantize_model(float_bundle("Llama"), tmp_path / "out", calibration=file)
    assert report.manifest.quantization["calibration"] == "2 runs on own inputs"
    with pytest.raises(QuantizeError, match=r"is the name of a file.*pass a Path") as caught:
        quantize_model(float_bundle("Llama"), tmp_path / "other", calibration=str(file))
    assert caught.value.parameter == "calibration"
    assert not (tmp_path / "other").exists()


def test_calibration_files(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ein Text, größer", encoding="utf-8")
    assert read_calibration_file(tmp_path / "text.txt") == "ein Text, größer"
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    for name in ("latin.txt", "missing.txt"):
        with pytest.raises(QuantizeError, match="not readable as UTF-8 text") as caught:
            read_calibration_file(tmp_path / name)
        assert caught.value.value == str(tmp_path / name)


def test_no_npz_file(tmp_path: Path) -> None:
    (tmp_path / "runs.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(QuantizeError, match=r"runs\.npz: not a readable \.npz file"):
        read_calibration_file(tmp_path / "runs.npz")


def test_a_text_that_is_a_file_name_is_refused(tmp_path: Path) -> None:
    path = plain(tmp_path)
    with pytest.raises(QuantizeError, match=r"calibration: .*pass a Path"):
        quantize_model(path, tmp_path / "out", calibration=str(path))
    with pytest.raises(QuantizeError, match="calibration: no inputs"):
        quantize_model(path, tmp_path / "out", calibration=[])
