"""Small encoder-decoder models from images to text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from edgetie.sources.source import Source

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


def vit_gpt2() -> Any:
    """The decoder could be a model of its own."""
    decoder = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=40, add_cross_attention=True, is_decoder=True,
        **TOKENS,
    )  # fmt: skip
    return pair(transformers.ViTConfig(**VISION), decoder)


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
