"""Vision-language models: image embeddings in place of tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from image_models import (
    TOKEN,
    blip2,
    build,
    export,
    gemma3,
    lfm2_vl,
    llava,
    mistral3,
    ovis2,
    paligemma,
    qwen2_5_vl,
    qwen3_vl,
    smolvlm,
)  # fmt: skip

from edgetie.bundle.names import GRID, MASKED_SIZES, PATCH_MASK, PIXELS
from edgetie.errors import ExportError
from edgetie.export.images.image_inputs import FixedImages, Patches
from edgetie.export.tasks.image_lm import trial_run
from edgetie.quantize.quantizer import quantize_model

INPUTS = {
    llava: [PIXELS],
    paligemma: [PIXELS],
    gemma3: [PIXELS],
    smolvlm: [PIXELS],
    qwen3_vl: [PIXELS, GRID],
    qwen2_5_vl: [PIXELS, GRID],
    mistral3: [PIXELS],
    lfm2_vl: [PIXELS, MASKED_SIZES, PATCH_MASK],
    ovis2: [PIXELS],
    blip2: [PIXELS],
}
"""The encoder's inputs."""


@pytest.mark.parametrize("make", INPUTS)
def test_images_in_a_prompt_give_torchs_logits_from_one_table(make: Any, tmp_path: Path) -> None:
    model = build(make())
    report = export(model, tmp_path / "bundle")
    assert report.agreement.relative < 1e-4
    assert report.manifest.signature.cache
    (tie,) = report.manifest.ties
    assert {use.op_type for use in tie.uses} in ({"Gather", "MatMul"}, {"Gather", "Gemm"})
    unique = sum(weight.numel() for weight in model.parameters()) * 4
    assert report.weights_bytes < unique * 1.1
    signature = report.manifest.signature
    assert (signature.image_token_id, signature.audio_token_id) == (TOKEN, None)
    names = [tensor.name for tensor in signature.inputs]
    assert names[:3] == ["input_ids", "attention_mask", "image_embeds"]
    assert report.manifest.encoder is not None
    assert [tensor.name for tensor in report.manifest.encoder.inputs] == INPUTS[make]
    assert ("position_ids" in names) == (GRID in INPUTS[make])


@pytest.mark.parametrize("scheme", [None, "int8"])
def test_weights_of_both_sides_are_stored_once(scheme: str | None, tmp_path: Path) -> None:
    config = smolvlm()
    for part in (config.vision_config, config.text_config):
        part.hidden_size, part.intermediate_size, part.num_attention_heads = 64, 128, 4
    config.text_config.num_key_value_heads, config.text_config.head_dim = 2, 16
    model = build(config)
    text, vision = model.model.text_model.layers[0], model.model.vision_model.encoder.layers[0]
    vision.self_attn.out_proj.weight = text.self_attn.o_proj.weight
    vision.self_attn.q_proj.weight = text.self_attn.q_proj.weight
    vision.mlp.fc1.weight = text.mlp.up_proj.weight
    bundle = export(model, tmp_path / "fp32").bundle
    if scheme:
        bundle = quantize_model(bundle, tmp_path / scheme, scheme=scheme).bundle
    across = [tie for tie in bundle.manifest.ties if len({use.file for use in tie.uses}) == 2]
    assert len(across) == 3
    for tie in across:
        ranges = set()
        for path in bundle.model_paths:
            graph = onnx.load(path, load_external_data=False).graph
            (tensor,) = (each for each in graph.initializer if each.name == tie.name)
            entries = {entry.key: entry.value for entry in tensor.external_data}
            ranges.add((entries["location"], entries["offset"], entries["length"]))
        assert len(ranges) == 1


def test_files_are_as_large_as_the_parameters(tmp_path: Path) -> None:
    config = smolvlm()
    config.text_config.vocab_size, config.text_config.hidden_size = 1 << 14, 128
    model = build(config)
    directory = export(model, tmp_path / "bundle").bundle.directory
    unique = sum(weight.numel() for weight in model.parameters()) * 4
    assert sum(path.stat().st_size for path in directory.iterdir()) < unique * 1.02


def test_what_the_encoder_reads() -> None:
    model = build(smolvlm())
    task = trial_run(model, model.config)
    assert task.image == FixedImages({PIXELS: (3, 16, 16)}, outer=1)
    model = build(qwen3_vl())
    task = trial_run(model, model.config)
    assert (task.image, task.position_axes) == (Patches((), 1, (96,), GRID, 4), 3)
    assert task.embeddings == ["image_embeds", "image_embeds.1"]


@pytest.mark.parametrize(("make", "sees_prompt"), [(paligemma, True), (gemma3, False)])
def test_which_tokens_attend_to_later_ones(make: Any, sees_prompt: bool) -> None:
    model = build(make())
    assert trial_run(model, model.config).sees_prompt == sees_prompt


def test_a_model_without_a_place_for_images() -> None:
    model = build(llava())
    with pytest.raises(TypeError, match="no image_token_id"):
        trial_run(model, SimpleNamespace())


def test_an_encoder_that_accepts_no_known_images(tmp_path: Path) -> None:
    model = build(llava())
    model.model.vision_tower.forward = lambda *_, **__: 1 / 0
    with pytest.raises(ExportError, match="no shape of pixel_values is known that it accepts"):
        export(model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
