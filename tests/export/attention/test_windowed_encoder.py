"""Encoders that attend within windows: their length, and attention with a mask of windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgetie.export.attention.windowed_encoder import attend_in_windows, find_window_length


class Encoder(nn.Module):
    """Passes the starts of windows to its attention, as audio encoders of transformers do."""

    def __init__(self, *windows: int) -> None:
        super().__init__()
        self.attention = nn.Identity()
        self.attention.forward = lambda x, cu_seqlens=None: x  # type: ignore[method-assign]
        self.windows = windows
        self.config = transformers.PreTrainedConfig()
        self.config._attn_implementation = "sdpa"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for window in self.windows:
            starts = [*range(0, x.shape[1], window), x.shape[1]]
            x = self.attention(x, cu_seqlens=torch.tensor(starts))
        return x


def test_length_of_windows() -> None:
    x = torch.zeros(1, 10, 4)
    for windows, expected in (((4, 4), 4), ((), None)):
        encoder = Encoder(*windows)
        assert find_window_length(encoder, lambda e=encoder: e(x)) == expected
        assert not encoder.attention._forward_pre_hooks
    with pytest.raises(TypeError, match="windows of several lengths"):
        find_window_length(encoder := Encoder(4, 5), lambda: encoder(x))


def test_attention_is_computed_within_windows() -> None:
    encoder: Any = Encoder()
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 7, 8)
    with attend_in_windows(encoder, 3) as arguments:
        name = encoder.config._attn_implementation
        assert "flash" in name
        assert arguments["cu_seqlens"].tolist() == [0, 3]
        attention = ALL_ATTENTION_FUNCTIONS[name]
        output, _ = attention(encoder, query, key, value, None, max_length_q=3)
    assert encoder.config._attn_implementation == "sdpa"
    expected = torch.cat(
        [
            nn.functional.scaled_dot_product_attention(*(t[:, :, i : i + 3] for t in tensors))
            for i in (0, 3, 6)
            if (tensors := (query, key, value))
        ],
        dim=2,
    )
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_without_windows_nothing_changes() -> None:
    encoder: Any = Encoder()
    with attend_in_windows(encoder, None) as arguments:
        assert arguments == {}
        assert encoder.config._attn_implementation == "sdpa"
