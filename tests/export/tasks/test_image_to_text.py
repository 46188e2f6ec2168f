"""Encoder-decoder models from images to text, from export to the tokens of int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers

from edgetie.bundle.bundle import Bundle
from edgetie.errors import BundleError, EdgetieError, ExportError
from edgetie.export.exporter import export_model
from edgetie.export.tasks.image_to_text import as_encoder_decoder, image_shapes, trial_run
from edgetie.harness.accuracy.check import check_model
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.generation import generate, generate_from_images
from edgetie.runtime.images.embeddings import random_image
from edgetie.runtime.session import open_session
from edgetie.sources.source import Source
from edgetie.ties.groups import equal_initializers

VOCABULARY, START, END = 128, 121, 122
HALF = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
VISION = {**HALF, "num_hidden_layers": 1, "image_size": 16, "patch_size": 4}
TOKENS = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": 0, "vocab_size": VOCABULARY}
DECODER = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32,
           "max_position_embeddings": 40, "tie_word_embeddings": True, **TOKENS}  # fmt: skip


def pair(encoder: Any, decoder: Any) -> Any:
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = START, END, 0
    config.tie_word_embeddings = True
    return config


def trocr() -> Any:
    """The encoder is wider than the decoder."""
    encoder = transformers.ViTConfig(**{**VISION, "hidden_size": 24})
    return pair(encoder, transformers.TrOCRConfig(**DECODER, cross_attention_hidden_size=24))


def donut() -> Any:
    """Attention in shifted windows; the decoder's configuration counts an encoder's layers."""
    encoder = transformers.DonutSwinConfig(
        image_size=[64, 32], patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2],
        window_size=4,
    )  # fmt: skip
    decoder = transformers.MBartConfig(
        **DECODER, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=32,
        scale_embedding=True, add_final_layer_norm=True, is_encoder_decoder=False, is_decoder=True,
        forced_eos_token_id=None,
    )  # fmt: skip
    return pair(encoder, decoder)


def pix2struct() -> Any:
    """Flattened patches and their mask."""
    return transformers.Pix2StructConfig(
        vision_config={
            "hidden_size": 16, "patch_embed_hidden_size": 48, "d_ff": 32, "d_kv": 8, "seq_len": 64,
            "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4,
        },
        text_config={
            "hidden_size": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
            "decoder_start_token_id": START, "tie_word_embeddings": True, **TOKENS,
        },
        tie_word_embeddings=True,
    )  # fmt: skip


def blip() -> Any:
    """Not an encoder-decoder model by its configuration, and a separator ends its texts."""
    return transformers.BlipConfig(
        vision_config={**VISION, "projection_dim": 16},
        text_config={
            **HALF, **TOKENS, "eos_token_id": 2, "sep_token_id": END, "encoder_hidden_size": 16,
            "num_hidden_layers": 2, "max_position_embeddings": 40,
        },
        projection_dim=16,
    )  # fmt: skip


def florence2() -> Any:
    """The encoder reads a prompt with places for the image."""
    return transformers.Florence2Config(
        vision_config={
            "embed_dim": [8, 16], "depths": [1, 1], "num_heads": [2, 2], "num_groups": [2, 2],
            "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
            "patch_prenorm": [False, True], "window_size": 4, "projection_dim": 16,
            "max_position_embeddings": 50,
        },
        text_config={
            "model_type": "bart", **DECODER, "encoder_layers": 1, "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32, "max_position_embeddings": 1024,
            "decoder_start_token_id": START, "forced_eos_token_id": None,
            "forced_bos_token_id": None,
        },
        image_token_id=120,
        tie_word_embeddings=True,
    )  # fmt: skip


MODELS = {each.__name__: each for each in (trocr, donut, pix2struct, blip, florence2)}


def build(make: Any) -> Any:
    """A random model whose tokens depend on the image."""
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(make()).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


def source_of(model: Any) -> Source:
    def save(target: Path) -> None:
        model.config.save_pretrained(target)
        model.generation_config.save_pretrained(target)

    return Source("transformers", "tiny", model, model.config, save)


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
