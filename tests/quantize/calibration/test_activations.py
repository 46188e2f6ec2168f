"""What ``quantize`` calibrates on: a text or inputs of one's own, a tokenizer beside a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import models
import numpy as np
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
    read_calibration_file,
    read_feeds,
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
def test_calibration_on_inputs_of_ones_own(float_bundle: Any, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(3, models.VOCAB, (5, 1, 40))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    np.savez(tmp_path / "runs.npz", **feeds)
    report = quantize_model(
        float_bundle("Llama"), tmp_path / "out", calibration=read_feeds(tmp_path / "runs.npz")
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

    def attempt() -> None:
        runs = read_feeds(tmp_path / "runs.npz")
        quantize_model(float_bundle("Llama"), tmp_path / "out", calibration=runs)

    with pytest.raises(QuantizeError, match=words):
        attempt()
    assert not (tmp_path / "out").exists()


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
        read_feeds(tmp_path / "runs.npz")


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


def test_a_text_that_is_a_file_name_is_refused(tmp_path: Path) -> None:
    path = plain(tmp_path)
    with pytest.raises(QuantizeError, match=r"calibration: .*pass a Path"):
        quantize_model(path, tmp_path / "out", calibration=str(path))
    with pytest.raises(QuantizeError, match="calibration: no inputs"):
        quantize_model(path, tmp_path / "out", calibration=[])


def test_activations_of_all_windows_together(tmp_path: Path) -> None:
    path = plain(tmp_path)
    inputs = CalibrationInput(list(range(300)))
    (x, name), *rest = (
        (array, name) for name, array in collect_activations(open_bundle(path), path, ["x"], inputs)
    )
    assert (name, x.shape, rest) == ("x", (300, 64), [])
