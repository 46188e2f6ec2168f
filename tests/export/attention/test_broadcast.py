"""Attention with broadcast operands gives what torch computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from edgetie.export.attention.broadcast import AttentionMode, BroadcastAttention


class RecordCall(AttentionMode):
    def attend(self, call: dict[str, Any]) -> torch.Tensor:
        self.call = call
        return super().attend(call)


@pytest.mark.parametrize(
    ("query", "key", "mask"),
    [
        ((2, 4, 3, 8), (2, 1, 5, 8), None),
        ((1, 4, 3, 8), (2, 4, 5, 8), None),
        ((2, 4, 3, 8), (2, 4, 5, 8), (2, 1, 1, 5)),
    ],
)
def test_operands_are_expanded_and_results_the_same(
    query: tuple[int, ...], key: tuple[int, ...], mask: tuple[int, ...] | None
) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(query), torch.randn(key)
    bias = None if mask is None else torch.randn(mask)
    expected = scaled_dot_product_attention(q, k, k, attn_mask=bias)
    record = RecordCall()
    with record, BroadcastAttention():
        output = scaled_dot_product_attention(q, k, k, attn_mask=bias)
    torch.testing.assert_close(output, expected)
    assert record.call["query"].shape == (2, 4, 3, 8)
    assert record.call["key"].shape == record.call["value"].shape == (2, 4, 5, 8)
    if mask is not None:
        assert record.call["attn_mask"].shape == (2, 1, 3, 5)


def test_arguments_by_position_and_by_name() -> None:
    x = torch.ones(1, 1, 2, 8)
    with RecordCall() as record:
        scaled_dot_product_attention(x, x, x, is_causal=True)
    assert list(record.call) == ["query", "key", "value", "is_causal"]
    assert record.call["is_causal"] is True
