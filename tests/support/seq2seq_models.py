"""Small random encoder-decoder models."""

from __future__ import annotations

from typing import Any

import torch
import transformers

TOKENS = {"vocab_size": 512, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2}


SIDES = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
}  # fmt: skip


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "T5": ("T5ForConditionalGeneration",
           {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}),
    "Bart": ("BartForConditionalGeneration", SIDES),
    "Marian": ("MarianMTModel", SIDES),
    "M2M100": ("M2M100ForConditionalGeneration", SIDES),
}  # fmt: skip


def make(name: str) -> Any:
    torch.manual_seed(0)
    kind, sizes = MODELS[name]
    model = getattr(transformers, kind)(
        getattr(transformers, f"{name}Config")(**TOKENS, **sizes)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that it does not say one word for ever
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
