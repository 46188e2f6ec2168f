"""Masks that are recognised, attention that is refused, and both outside of a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgetie.errors import UnfusableError
from edgetie.export.attention.group_query_attention import AttentionTrace, tracing
from edgetie.export.attention.transformers_attention import (
    NAME,
    build_mask,
    compute_attention,
    register,
    require_causal,
)


def causal(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return key <= query


def in_window(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return (key <= query) & (key > query - 3)


def empty_trace() -> AttentionTrace:
    return AttentionTrace(torch.zeros(1), torch.zeros(1), [])


def test_registered_with_transformers() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    assert register() == NAME
    assert ALL_ATTENTION_FUNCTIONS[NAME] is compute_attention
    assert ALL_MASK_ATTENTION_FUNCTIONS[NAME] is build_mask


def test_causal_masks_with_and_without_a_window() -> None:
    require_causal(causal, None)
    require_causal(in_window, 3)
    for mask, window in ((in_window, None), (causal, 3), (in_window, 4)):
        with pytest.raises(UnfusableError, match="neither causal nor a causal window"):
            require_causal(mask, window)


def test_a_mask_that_depends_on_data() -> None:
    def padded(batch: Any, head: Any, query: Any, key: Any) -> Any:
        raise RuntimeError("traced")

    with pytest.raises(UnfusableError, match=r"depends on the input \(RuntimeError\)"):
        require_causal(padded, None)


def test_masks_are_markers_within_a_trace() -> None:
    trace = empty_trace()
    with tracing(trace):
        mask = build_mask(1, 3, 3, in_window, local_size=3)
    assert [(marker is mask, window) for marker, window in trace.masks] == [(True, 3)]


def test_attention_that_cannot_be_expressed() -> None:
    tensors = [torch.zeros(1, 1, 2, 8)] * 3
    with tracing(empty_trace()):
        with pytest.raises(UnfusableError, match="with position_bias"):
            compute_attention(nn.Identity(), *tensors, None, position_bias=torch.zeros(1))
        with pytest.raises(UnfusableError, match="a mask of the model's own"):
            compute_attention(nn.Identity(), *tensors, torch.zeros(1))


def test_attention_outside_of_a_trace_is_that_of_torch() -> None:
    mask = build_mask(1, 3, 3, causal, allow_is_causal_skip=False)
    assert mask is not None
    assert mask.tolist() == [[torch.ones(3, 3).tril().bool().tolist()]]
    query, key, value = torch.randn(3, 1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    got, _ = compute_attention(nn.Linear(1, 1), query, key, value, mask, scaling=0.5)
    scores = (query @ key.mT * 0.5).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(got, (scores.softmax(-1) @ value).transpose(1, 2))
