"""Small vision-language models, one for each way in which they read images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from image_cases import write_settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgetie.export.exporter import ExportReport, export_model
from edgetie.sources.source import Source

TOKEN = 60
START = 61
"""Comes before images of some models."""
TEMPLATE = (
    "{% for m in messages %}w1 {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %} w9"
)
TEXT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": None,
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
        vision_start_token_id=START,
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
        vision_start_token_id=START,
        tie_word_embeddings=True,
    )  # fmt: skip


def mistral3() -> Any:
    """Pixels of any height and width."""
    return transformers.Mistral3Config(
        vision_config={"model_type": "pixtral", **VISION, "head_dim": 8, "patch_size": 4},
        text_config={"model_type": "mistral", **TEXT, "max_position_embeddings": 64},
        image_token_index=TOKEN,
        tie_word_embeddings=True,
    )


def lfm2_vl() -> Any:
    """Patches and padding, with a mask and the size."""
    return transformers.Lfm2VlConfig(
        vision_config={
            "model_type": "siglip2_vision_model",
            **VISION,
            "patch_size": 4,
            "num_patches": 16,
        },
        text_config={"model_type": "lfm2", **TEXT, "layer_types": ["full_attention"]},
        image_token_id=TOKEN,
        projector_hidden_size=16,
        tie_word_embeddings=True,
    )


def ovis2() -> Any:
    """Tokens around an image have embeddings of the encoder, the same for all images."""
    return transformers.Ovis2Config(
        vision_config={
            **VISION, "image_size": 16, "patch_size": 4, "vocab_size": 32, "hidden_stride": 2,
        },
        text_config={"model_type": "qwen2", **TEXT, "max_position_embeddings": 64},
        image_token_id=TOKEN,
        visual_indicator_token_ids=[55, 56, 57, 58, 59],
        hidden_size=16,
        vocab_size=64,
        tie_word_embeddings=True,
    )  # fmt: skip


def blip2() -> Any:
    """A language model inside, which has the cache; queries that read the image."""
    return transformers.Blip2Config(
        vision_config={**VISION, "image_size": 16, "patch_size": 8},
        qformer_config={**VISION, "encoder_hidden_size": 16, "vocab_size": 64},
        text_config={
            "model_type": "opt", **TEXT, "ffn_dim": 32, "word_embed_proj_dim": 16,
            "max_position_embeddings": 64,
        },
        image_token_index=TOKEN,
        num_query_tokens=3,
    )  # fmt: skip


def build(config: Any) -> Any:
    torch.manual_seed(0)
    classes = transformers.AutoModelForImageTextToText
    return classes.from_config(config).float().eval()


def liven(model: Any) -> Any:
    """Let layers count for more than the table, so that a model does not repeat its last token.

    Its answers never have the image token, which runtimes treat differently.
    """
    torch.manual_seed(9)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.02 if weight is table else 0.3)
        table[TOKEN] = 0
    return model


def export(model: Any, directory: Path) -> ExportReport:
    source = Source("transformers", "tiny", model, model.config, model.config.save_pretrained)
    assert source.task == "image-text-to-text"
    return export_model(source, directory)


def letter_tokenizer() -> Tokenizer:
    """A tokenizer of letters and digits, one a token, of which constraints can be made."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWX0123456789"
    assert len(letters) == TOKEN
    tokenizer = Tokenizer(models.BPE({letter: token for token, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<image>"])
    return tokenizer


def write_tokenizer(directory: Path) -> None:
    """Words w0 to w63, of which one is the image token."""
    words = {f"w{i}": i for i in range(64) if i != TOKEN}
    tokenizer = Tokenizer(models.WordLevel(words | {"<image>": TOKEN}, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"image_token": "<image>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_llava_processor(directory: Path) -> None:
    """Write the processor and the tokenizer of :func:`llava`."""
    write_settings(directory, "CLIP", size=16, crop_size=16)
    processor = {
        "processor_class": "LlavaProcessor", "patch_size": 8, "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }  # fmt: skip
    (directory / "processor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    write_tokenizer(directory)
