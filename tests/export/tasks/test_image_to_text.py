"""Encoder-decoder models from images to text, from export to the tokens of int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from image_to_text_models import (
    END,
    HALF,
    MODELS,
    START,
    TOKENS,
    VISION,
    VOCABULARY,
    blip,
    build,
    donut,
    florence2,
    pix2struct,
    source_of,
)

from edgetie.bundle.bundle import Bundle
from edgetie.errors import BundleError, EdgetieError, ExportError
from edgetie.export.exporter import export_model
from edgetie.export.tasks.image_to_text import as_encoder_decoder, image_shapes, trial_run
from edgetie.harness.accuracy.check import check_model
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.generation import generate, generate_from_images
from edgetie.runtime.images.embeddings import random_image
from edgetie.runtime.session import open_session
from edgetie.ties.groups import equal_initializers


@pytest.fixture(scope="module", params=MODELS)
def exported(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Bundle]:
    model = build(MODELS[request.param])
    source = source_of(model)
    assert source.task == "image-to-text"
    report = export_model(source, tmp_path_factory.mktemp(request.param) / "fp32")
    assert report.agreement.relative < 1e-5
    assert report.weights_bytes < 1.1 * report.unique_parameter_bytes
    return request.param, model, report.bundle


def test_one_table_and_the_encoders_inputs(exported: tuple[str, Any, Bundle]) -> None:
    name, _, bundle = exported
    (table,) = (tie for tie in bundle.manifest.ties if tie.shape[0] == VOCABULARY)
    assert len(table.uses) == (3 if name == "florence2" else 2)
    for path in bundle.model_paths:
        assert not equal_initializers(ir.load(path))
    assert bundle.manifest.encoder is not None
    inputs = [value.name for value in bundle.manifest.encoder.inputs]
    expected = {
        "pix2struct": ["flattened_patches", "attention_mask"],
        "florence2": ["pixel_values", "input_ids", "attention_mask"],
    }
    assert inputs == expected.get(name, ["pixel_values"])
    signature = bundle.manifest.signature
    has_mask = "encoder_attention_mask" in [value.name for value in signature.inputs]
    assert has_mask == ("attention_mask" in inputs)
    assert signature.start_token_ids == [START]
    assert END in signature.eos_token_ids
    assert (signature.image_tokens is not None) == (name == "florence2")


def test_greedy_tokens_are_those_of_torch(exported: tuple[str, Any, Bundle]) -> None:
    _, model, bundle = exported
    session = open_session(bundle, provider="cpu")
    random = np.random.default_rng(0)
    images = [random_image(session.encoder, bundle.manifest.signature, random) for _ in range(2)]
    inputs = {name: np.concatenate([image[name] for image in images]) for name in images[0]}
    steps = list(generate_from_images(session, inputs, max_new_tokens=12))
    written = [[int(s.tokens[i]) for s in steps if s.active[i]] for i in range(2)]
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with torch.no_grad():
        expected = model.generate(**tensors, max_new_tokens=12, do_sample=False, num_beams=1)
    for row, tokens in zip(expected[:, 1:].tolist(), written, strict=True):
        assert row[: len(tokens)] == tokens
        assert set(row[len(tokens) :]) <= {0}


def test_int8_keeps_one_table(exported: tuple[str, Any, Bundle], tmp_path: Path) -> None:
    _, _, bundle = exported
    report = quantize_model(bundle.directory, tmp_path / "int8")
    (table,) = (tie for tie in report.manifest.ties if tie.shape[0] == VOCABULARY)
    assert table.dtype == "UINT8"
    assert len(table.uses) == len(bundle.manifest.ties[0].uses)
    accuracy = check_model(tmp_path / "int8", str(bundle.directory))
    assert accuracy.passed
    assert accuracy.top1_agreement > 0.9


def test_a_text_that_starts_with_other_tokens(tmp_path: Path) -> None:
    model = build(donut)
    bundle = export_model(source_of(model), tmp_path / "fp32").bundle
    session = open_session(bundle, provider="cpu")
    pixels = np.random.default_rng(0).standard_normal((1, 3, 64, 32), np.float32)
    start = [START, 7, 9]
    steps = generate_from_images(session, {"pixel_values": pixels}, max_new_tokens=5, start=start)
    with torch.no_grad():
        expected = model.generate(
            torch.from_numpy(pixels), decoder_input_ids=torch.tensor([start]), max_new_tokens=5,
            do_sample=False, num_beams=1,
        )  # fmt: skip
    assert [int(step.tokens[0]) for step in steps] == expected[0, 3:].tolist()
    with pytest.raises(EdgetieError, match="its encoder reads pixel_values as well"):
        next(generate_from_images(session, {"input_ids": pixels}, max_new_tokens=1))
    with pytest.raises(BundleError, match="reads images, not text; use generate_from_images"):
        next(generate(session, [[1, 2]], max_new_tokens=1))


def test_an_encoder_that_puts_images_into_its_prompt(tmp_path: Path) -> None:
    text = {
        **HALF, **TOKENS, "num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 8,
        "layer_types": ["full_attention"],
    }  # fmt: skip
    encoder = {"text_config": text, "vision_config": VISION, "mm_tokens_per_image": 4}
    config = transformers.T5Gemma2Config(
        encoder={**encoder, "vocab_size": VOCABULARY}, decoder=text, image_token_index=120
    )
    model = build(lambda: config)
    source = source_of(model)
    assert source.task == "seq2seq-lm"  # it reads texts without images, too
    source.task = "image-to-text"
    report = export_model(source, tmp_path / "fp32")
    assert report.agreement.relative < 1e-5
    (table,) = (tie for tie in report.manifest.ties if tie.shape[0] == VOCABULARY)
    assert len(table.uses) == 3
    assert report.manifest.signature.image_tokens == 4


def test_a_model_without_cross_attention(tmp_path: Path) -> None:
    model = build(blip)
    del model.text_decoder
    with pytest.raises(TypeError, match="no decoder that attends to the output of an image"):
        as_encoder_decoder(model)
    with pytest.raises(ExportError, match="no decoder that attends to the output of an image"):
        export_model(source_of(model), tmp_path / "bundle")


def test_what_the_encoder_reads() -> None:
    model = build(pix2struct)
    task = trial_run(model, model.config)
    assert (task.shape, task.encoded_length, task.image_token_id) == ((24, 50), 24, None)
    model = build(florence2)
    task = trial_run(model, model.config)
    assert (task.image_token_id, task.image_tokens) == (120, task.encoded_length)
    assert list(image_shapes("pixel_values", model.config)) == [(3, 224, 224), (3, 384, 384)]
