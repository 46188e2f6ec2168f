"""The argument that takes the KV cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgetie.sources.cache_argument import cache_keyword


class Old(nn.Module):
    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None) -> None: ...


class New(nn.Module):
    def forward(self, input_ids: torch.Tensor, cache: Any = None, **options: Any) -> None: ...


class Without(nn.Module):
    def forward(self, input_ids: torch.Tensor) -> None: ...


@pytest.mark.parametrize(
    ("kind", "keyword"), [(Old, "past_key_values"), (New, "cache"), (Without, None)]
)
def test_keyword(kind: type[nn.Module], keyword: str | None) -> None:
    assert cache_keyword(kind()) == keyword
