"""GroupQueryAttention nodes against attention in torch, and the shapes that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from edgetie.errors import UnfusableError
from edgetie.export.attention.group_query_attention import (
    AttentionTrace,
    CacheLayer,
    attend,
    current_trace,
    require_fusable,
    tracing,
)
from edgetie.export.recurrence.token_unroll import TokenUnroll


def qkv(batch: int, length: int, past: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 4, length, 8), *[(batch, 2, length, 8)] * 2, *[(batch, 2, past, 8)] * 2]
    return [torch.randn(shape, generator=generator) for shape in shapes]


class Attention(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, past_key, past_value = tensors
        layer = CacheLayer(past_key, past_value)
        layer.append(key, value)
        total = past_key.shape[2] + query.shape[2]
        seqlens = torch.full((query.shape[0],), total - 1, dtype=torch.int32)
        trace = AttentionTrace(seqlens, torch.full((1,), total, dtype=torch.int32), [layer])
        with tracing(trace):
            return (attend(query, layer, **self.settings), *layer.result)


@pytest.mark.parametrize("window", [None, 3])
def test_node_computes_attention_over_past_and_new_tokens(window: int | None) -> None:
    tensors = qkv(batch=1, length=4, past=3)
    program = torch.export.export(Attention(scale=0.5, window=window), tuple(tensors), strict=False)
    converted = torch.onnx.export(program, dynamo=True, opset_version=23, verbose=False)
    nodes = [node for node in converted.model.graph if node.op_type == "GroupQueryAttention"]
    assert len(nodes) == 1
    session = onnxruntime.InferenceSession(converted.model_proto.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    output, present_key, _ = session.run(None, feeds)
    query, key, value, past_key, past_value = tensors
    keys, values = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    np.testing.assert_array_equal(present_key, keys)
    position, other = torch.arange(3, 7)[:, None], torch.arange(7)[None]
    mask = (other <= position) & (other > position - (window or 7))
    expected = nn.functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=0.5, enable_gqa=True
    )
    np.testing.assert_allclose(output, expected.transpose(1, 2), atol=1e-5)


def test_unrolled_tokens_are_merged_before_they_are_cached() -> None:
    unroll = TokenUnroll(torch.zeros(2, 3, dtype=torch.long))
    layer = CacheLayer(torch.zeros(2, 1, 0, 8), torch.zeros(2, 1, 0, 8), unroll)
    key = torch.arange(48.0).reshape(6, 1, 1, 8)
    full, _ = layer.append(key, key)
    assert full.shape == (2, 1, 3, 8)
    torch.testing.assert_close(full[1, 0, 2], key[5, 0, 0])


def test_layer_is_found_by_its_keys() -> None:
    layer = CacheLayer(torch.zeros(1, 1, 0, 8), torch.zeros(1, 1, 0, 8))
    with pytest.raises(UnfusableError, match="never wrote its KV cache"):
        layer.result  # noqa: B018
    key, _ = layer.append(torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1, 8))
    trace = AttentionTrace(torch.zeros(1), torch.zeros(1), [layer])
    assert trace.layer_of(key) is layer
    with pytest.raises(UnfusableError, match="no KV cache layer"):
        trace.layer_of(key.clone())


def test_the_trace_ends_with_its_context() -> None:
    trace = AttentionTrace(torch.zeros(1), torch.zeros(1), [])
    with tracing(trace):
        assert current_trace() is trace
    assert current_trace() is None


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 4, 8)] * 3, "tensors of 3 axes"),
        ([(1, 4, 3, 12)] * 3, "head sizes 12, 12, 12"),
        ([(1, 4, 3, 16), (1, 4, 3, 16), (1, 4, 3, 8)], "head sizes 16, 16, 8"),
        ([(1, 4, 3, 8), (1, 3, 3, 8), (1, 3, 3, 8)], "4 query heads over 3 key heads"),
    ],
)
def test_shapes_that_the_operator_does_not_support(
    shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(UnfusableError, match=message):
        require_fusable(*map(torch.zeros, shapes))
