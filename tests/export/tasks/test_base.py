"""Logits of whatever a model returns, limits of positions, descriptions of caches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgetie.export.tasks.base import key_value, logits_of, read_max_positions, torch_logits
from edgetie.graph.tensors import CacheTensor

LOGITS = torch.arange(12.0).reshape(1, 3, 4)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        SimpleNamespace(logits=LOGITS),
        {"logits": LOGITS},
        (None, LOGITS),
        {"logits": (None, LOGITS)},
    ],
)
def test_logits(output: Any) -> None:
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize("output", [None, (), {"loss": LOGITS}, LOGITS[0]])
def test_no_logits(output: Any) -> None:
    with pytest.raises(TypeError, match=r"logits of shape \(batch, sequence, vocabulary\)"):
        logits_of(output)


def test_torch_logits_takes_arrays_and_returns_one_in_fp32() -> None:
    class Model(nn.Module):
        def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return (ids[..., None] * scale).half()

    logits = torch_logits(Model(), np.ones((1, 2)), scale=torch.tensor([1.0, 2.0]))
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, [[[1, 2], [1, 2]]])


def test_keys_and_values_are_described() -> None:
    key, value = torch.zeros(1, 2, 5, 16), torch.zeros(1, 2, 5, 8)
    assert key_value("3", key, value) == (
        CacheTensor("3.key", (2, 0, 16)),
        CacheTensor("3.value", (2, 0, 8)),
    )


class Positions(nn.Module):
    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(20, 4, padding_idx=padding)
        self.word_embeddings = nn.Embedding(20, 4, padding_idx=3)


@pytest.mark.parametrize(("padding", "limit"), [(None, 20), (1, 18)])
def test_positions_begin_after_that_of_padding(padding: int | None, limit: int) -> None:
    config = SimpleNamespace(max_position_embeddings=20)
    assert read_max_positions(config, Positions(padding)) == limit


def test_configurations_without_a_limit() -> None:
    for config in (None, SimpleNamespace(), SimpleNamespace(max_position_embeddings=-1)):
        assert read_max_positions(config, Positions(None)) is None
    text = SimpleNamespace(max_position_embeddings=7)
    config = SimpleNamespace(get_text_config=lambda: text)
    assert read_max_positions(config, Positions(None)) == 7
