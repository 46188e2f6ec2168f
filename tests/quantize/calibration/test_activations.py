"""Calibration texts and their tokenizers; activations of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import models
import pytest
from models import source_of
from quantize_models import error, logits, plain
from runtime_models import byte_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import QuantizeError
from edgetie.export.exporter import export_model
from edgetie.graph.model_files import load_model
from edgetie.harness.accuracy.samples import BUILT_IN_TEXT
from edgetie.quantize.calibration.activations import (
    calibration_text,
    collect_activations,
)
from edgetie.quantize.calibration.layerwise_run import CalibrationInput
from edgetie.quantize.quantizer import quantize_model


@pytest.mark.slow
def test_calibration_text_of_ones_own(float_bundle: Any, tmp_path: Path) -> None:
    source = tmp_path / "fp32"
    source.mkdir()
    for path in float_bundle("Llama").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    with pytest.raises(QuantizeError, match=r"no tokenizer\.json"):
        quantize_model(source, tmp_path / "int8", calibration="some text")
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(models.VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    words.save(str(source / "tokenizer.json"))
    manifest = json.loads((source / "edgetie.json").read_text())
    assert not open_bundle(source).is_bare
    assert manifest["precision"] == "fp32"
    with pytest.raises(QuantizeError, match="fewer than 16 tokens"):
        quantize_model(source, tmp_path / "int8", calibration="w1 w2")
    text = " ".join(f"w{i}" for i in range(3, 103))
    report = quantize_model(source, tmp_path / "int8", calibration=text)
    assert report.manifest.quantization["calibration"] == "100 tokens of own text"
    assert error(logits(source / "model.onnx"), logits(report.bundle.model_path)) < 0.03


@pytest.mark.slow
def test_a_text_of_tokens_that_the_model_lacks(float_bundle: Any, tmp_path: Path) -> None:
    source = tmp_path / "fp32"
    shutil.copytree(float_bundle("Llama"), source)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(2 * models.VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    words.save(str(source / "tokenizer.json"))
    text = " ".join(f"w{i}" for i in range(2 * models.VOCAB))
    with pytest.raises(QuantizeError, match="they do not belong together"):
        quantize_model(source, tmp_path / "int8", calibration=text)
    with pytest.raises(QuantizeError, match="calibration: no inputs"):
        quantize_model(source, tmp_path / "int8", calibration=[])


@pytest.mark.slow
def test_a_tokenizer_beside_a_plain_file_is_read_without_its_truncation(tmp_path: Path) -> None:
    model = models.transformers_model("Llama")
    model.config.max_position_embeddings = 512
    export_model(source_of(model), tmp_path / "fp32")
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / "fp32" / name).rename(tmp_path / name)
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(32)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}', encoding="utf-8")
    report = quantize_model(tmp_path / "model.onnx", tmp_path / "int8", calibration=BUILT_IN_TEXT)
    count = len(byte_tokenizer().encode(BUILT_IN_TEXT).ids)
    told = report.manifest.quantization["calibration"]
    assert told == f"{min(1024, count)} tokens of own text"
    assert report.manifest.signature.eos_token_ids == [2, 7]


def test_random_tokens_without_a_tokenizer(tmp_path: Path) -> None:
    bundle = open_bundle(plain(tmp_path))
    source = [load_model(bundle.model_path)]
    text = calibration_text(bundle, None, source)
    assert (len(text.calibration), len(text.evaluation)) == (1024, 1024)
    assert max(text.calibration) < models.VOCAB  # the size of the embedding
    assert text == calibration_text(bundle, None, source)
    with pytest.raises(QuantizeError, match=r"no tokenizer\.json"):
        calibration_text(bundle, "some text", source)


def test_tokens_after_the_first_1024_are_for_evaluation(tmp_path: Path) -> None:
    bundle = open_bundle(plain(tmp_path))
    tokenizer = byte_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = [load_model(bundle.model_path)]
    text = calibration_text(bundle, "0123456789" * 150, source)
    expected = tokenizer.encode("0123456789" * 150, add_special_tokens=False).ids
    assert text.calibration + text.evaluation == expected
    assert len(text.calibration) == 1024
    assert text.description == "own text"
    assert calibration_text(bundle, None, source).description == "built-in text"
    with pytest.raises(QuantizeError, match="fewer than 16 tokens"):
        calibration_text(bundle, "short", source)


def test_activations_of_all_windows_together(tmp_path: Path) -> None:
    path = plain(tmp_path)
    inputs = CalibrationInput(list(range(300)))
    (x, name), *rest = (
        (array, name) for name, array in collect_activations(open_bundle(path), path, ["x"], inputs)
    )
    assert (name, x.shape, rest) == ("x", (300, 64), [])
