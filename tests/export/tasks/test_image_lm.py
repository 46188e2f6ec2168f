"""Vision-language models: image embeddings in place of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from edgetie.bundle.names import GRID, PIXELS
from edgetie.errors import ExportError
from edgetie.export.exporter import export_model
from edgetie.export.tasks.image_lm import trial_run
from edgetie.sources.source import Source

TOKEN = 60
TEXT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SIGLIP = {"model_type": "siglip_vision_model", **VISION, "image_size": 16, "patch_size": 8}


def llava() -> Any:
    """Images of one size."""
    return transformers.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            **VISION,
            "image_size": 16,
            "patch_size": 8,
        },
        text_config={"model_type": "llama", **TEXT, "max_position_embeddings": 64},
        image_token_index=TOKEN,
        tie_word_embeddings=True,
    )


def paligemma() -> Any:
    """Tokens of a prompt attend to those that follow."""
    return transformers.PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": 16},
        text_config={"model_type": "gemma", **TEXT, "max_position_embeddings": 64},
        image_token_index=TOKEN,
        projection_dim=16,
        hidden_size=16,
    )


def gemma3() -> Any:
    """The tokens of an image attend to each other; the table is scaled."""
    return transformers.Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **VISION},
        text_config={**TEXT, "max_position_embeddings": 64, "layer_types": ["full_attention"]},
        image_token_index=TOKEN,
        mm_tokens_per_image=4,
    )


def smolvlm() -> Any:
    """Images have an axis for the batch of prompts."""
    return transformers.SmolVLMConfig(
        vision_config={**VISION, "image_size": 16, "patch_size": 4},
        text_config={"model_type": "llama", **TEXT, "max_position_embeddings": 64},
        image_token_id=TOKEN,
        scale_factor=2,
        tie_word_embeddings=True,
    )


def qwen3_vl() -> Any:
    """Patches with a grid, positions of three axes, and embeddings that deeper layers add."""
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return transformers.Qwen3VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
            "out_hidden_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
        text_config={**TEXT, "max_position_embeddings": 64, "rope_parameters": rotary},
        image_token_id=TOKEN,
        tie_word_embeddings=True,
    )  # fmt: skip


def qwen2_5_vl() -> Any:
    """Attention within windows."""
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
            "out_hidden_size": 16, "window_size": 16, "fullatt_block_indexes": [1],
        },
        text_config={**TEXT, "max_position_embeddings": 64, "rope_parameters": rotary},
        image_token_id=TOKEN,
        tie_word_embeddings=True,
    )  # fmt: skip


def build(config: Any) -> Any:
    torch.manual_seed(0)
    classes = transformers.AutoModelForImageTextToText
    return classes.from_config(config).float().eval()


@pytest.mark.parametrize("make", [llava, paligemma, gemma3, smolvlm, qwen3_vl, qwen2_5_vl])
def test_images_in_a_prompt_give_torchs_logits_from_one_table(make: Any, tmp_path: Path) -> None:
    model = build(make())
    source = Source("transformers", "tiny", model, model.config, model.config.save_pretrained)
    assert source.task == "image-text-to-text"
    report = export_model(source, tmp_path / "bundle")
    assert report.agreement.relative < 1e-4
    (tie,) = report.manifest.ties
    assert {use.op_type for use in tie.uses} in ({"Gather", "MatMul"}, {"Gather", "Gemm"})
    unique = sum(weight.numel() for weight in model.parameters()) * 4
    assert report.weights_bytes < unique * 1.1
    signature = report.manifest.signature
    assert (signature.image_token_id, signature.audio_token_id) == (TOKEN, None)
    names = [tensor.name for tensor in signature.inputs]
    assert names[:3] == ["input_ids", "attention_mask", "image_embeds"]
    assert report.manifest.encoder is not None
    encoder = [tensor.name for tensor in report.manifest.encoder.inputs]
    grid = hasattr(model.model, "get_rope_index")
    assert encoder == ([PIXELS, GRID] if grid else [PIXELS])
    assert ("position_ids" in names) == grid


def test_what_the_encoder_reads() -> None:
    model = build(smolvlm())
    task = trial_run(model, model.config)
    assert (task.image.shape, task.image.outer, task.image.has_grid) == ((3, 16, 16), 1, False)
    model = build(qwen3_vl())
    task = trial_run(model, model.config)
    assert (task.image.shape, task.image.merge, task.position_axes) == ((96,), 2, 3)
    assert task.embeddings == ["image_embeds", "image_embeds.1"]


@pytest.mark.parametrize(("make", "sees_prompt"), [(paligemma, True), (gemma3, False)])
def test_which_tokens_attend_to_later_ones(make: Any, sees_prompt: bool) -> None:
    model = build(make())
    assert trial_run(model, model.config).sees_prompt == sees_prompt


def test_an_encoder_that_accepts_no_known_images(tmp_path: Path) -> None:
    model = build(llava())
    model.model.vision_tower.forward = lambda *_, **__: 1 / 0
    source = Source("transformers", "tiny", model, model.config, model.config.save_pretrained)
    with pytest.raises(ExportError, match="no shape of pixel_values is known that it accepts"):
        export_model(source, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
