"""Attention with broadcast operands gives what torch computes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from edgetie.export.attention.broadcast import BroadcastAttention, attention_arguments


class RecordShapes(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is scaled_dot_product_attention:
            self.call = attention_arguments(args, kwargs or {})
        return func(*args, **(kwargs or {}))


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
    record = RecordShapes()
    with record, BroadcastAttention():
        output = scaled_dot_product_attention(q, k, k, attn_mask=bias)
    torch.testing.assert_close(output, expected)
    assert record.call["query"].shape == (2, 4, 3, 8)
    assert record.call["key"].shape == record.call["value"].shape == (2, 4, 5, 8)
    if mask is not None:
        assert record.call["attn_mask"].shape == (2, 1, 3, 5)


def test_arguments_by_position_and_by_name() -> None:
    call = attention_arguments((1, 2, 3), {"is_causal": True})
    assert call == {"query": 1, "key": 2, "value": 3, "is_causal": True}
