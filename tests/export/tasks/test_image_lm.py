"""Vision-language models: image embeddings in place of tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
