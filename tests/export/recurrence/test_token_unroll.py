"""Tokens split into batch items and merged again; the marked nodes' shapes and padding."""

from __future__ import annotations

import torch
from torch import nn

from edgetie.export.recurrence.token_unroll import DOMAIN, TokenUnroll


def test_split_and_merge_are_inverse() -> None:
    unroll = TokenUnroll(torch.arange(6).reshape(2, 3))
    heads = torch.randn(2, 3, 4, 5)  # (batch, sequence, heads, size)
    tokens = unroll.split(heads)
    assert tokens.shape == (6, 1, 4, 5)
    torch.testing.assert_close(unroll.merge(tokens.transpose(1, 2)), heads.transpose(1, 2))
    assert unroll.split(unroll.ids).tolist() == [[0], [1], [2], [3], [4], [5]]


class Sum(nn.Module):
    """Adds up what it reads, token by token."""

    def forward(self, ids: torch.Tensor, x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        unroll = TokenUnroll(ids)
        before = unroll.past_state(past)
        return unroll.present_state(before + unroll.split(x)[:, 0], before, ids > 0)


def test_marked_nodes_have_the_shapes_of_states() -> None:
    arguments = torch.ones(2, 3, dtype=torch.long), torch.randn(2, 3, 4), torch.zeros(2, 4)
    program = torch.export.export(Sum(), arguments, strict=False)
    converted = torch.onnx.export(program, dynamo=True, verbose=False, optimize=False)
    nodes = {node.op_type: node for node in converted.model.graph if node.domain == DOMAIN}
    past, present = nodes["PastState"], nodes["PresentState"]
    assert list(past.outputs[0].shape) == [6, 4]
    assert list(present.outputs[0].shape) == [2, 4]
    assert present.inputs[1] is past.outputs[0]
    assert present.inputs[0].producer().op_type == "Where"  # padding keeps the state before it
