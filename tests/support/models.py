"""Small models made on the spot: one of each kind of graph that must export."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgetie.sources.source import Source

VOCAB = 320


def transformers_model(kind: str, **changes: Any) -> Any:
    """A random two-layer transformers model with tied embeddings, seeded."""
    import transformers

    torch.manual_seed(0)
    common = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        "Llama": {},
        "Qwen2": {},
        "Qwen3": {"head_dim": 16},
        "Gemma3Text": {
            "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "SmolLM3": {"no_rope_layers": [1, 0], "no_rope_layer_interval": 2},
        "OPT": {"ffn_dim": 128, "word_embed_proj_dim": 64},
        "GPT2": {"n_positions": 128},
        "Mistral": {"sliding_window": 8},
        "Bloom": {"n_head": 4, "n_layer": 2},
        "Phi": {"partial_rotary_factor": 0.5, "hidden_size": 128},
        "GPTNeoX": {"rotary_pct": 0.5, "hidden_size": 128},
        "GPTJ": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
        "Cohere": {},
        "Granite": {},
        "Gemma2": {"head_dim": 16, "sliding_window": 8},
        "Olmo2": {},
        "Lfm2": {"layer_types": ["conv", "full_attention"]},
        "Mamba": {"state_size": 8},
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**{**common, **own[kind], **changes})
    model = getattr(
        transformers,
        {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}.get(
            kind, f"{kind}ForCausalLM"
        ),
    )(config)
    with torch.no_grad():  # zeros would hide a bias that got lost, ones a norm's weight
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
            elif "embed" not in name and "wte" not in name:
                parameter.mul_(4)
    return model.eval()


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, w = x.shape
        q, k, v = (
            t.view(b, s, self.heads, w // self.heads).transpose(1, 2)
            for t in self.qkv(self.norm1(x)).split(w, dim=2)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, w))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class HandWritten(nn.Module):
    """A language model of one's own; the head is the embedding's matrix, by assignment."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, width)
        self.positions = nn.Embedding(128, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCAB, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(input_ids) + self.positions(position_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Cacheless(HandWritten):
    """The same with positions of its own: nothing to cache with."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(input_ids, torch.arange(input_ids.shape[1])[None])


def hand_written() -> nn.Module:
    torch.manual_seed(0)
    return HandWritten()


def cacheless() -> nn.Module:
    torch.manual_seed(0)
    return Cacheless()


def odd_heads() -> nn.Module:
    """Heads of 12 channels, which GroupQueryAttention does not take."""
    torch.manual_seed(0)
    return HandWritten(width=48)


def untied() -> nn.Module:
    torch.manual_seed(0)
    model = HandWritten()
    model.head = nn.Linear(64, VOCAB, bias=False)
    return model


def source_of(model: Any, name: str = "model") -> Source:
    """A module as a source, without tokenizer."""
    return Source("factory", name, model, getattr(model, "config", None), lambda target: None)
