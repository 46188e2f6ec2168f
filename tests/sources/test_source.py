"""A loaded model knows its task and its architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from edgetie.sources.source import Source, cache_keyword


def test_the_class_of_the_module_decides_the_task() -> None:
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    model = transformers.BertForMaskedLM(config)
    source = Source("transformers", "bert", model, config, lambda target: None)
    assert source.architecture == "BertForMaskedLM"
    assert source.task == "masked-lm"


def test_a_task_that_is_named_stays() -> None:
    module = torch.nn.Linear(2, 2)
    assert Source("factory", "m", module, None, lambda target: None).task == "causal-lm"
    assert (
        Source("factory", "m", module, None, lambda target: None, "masked-lm").task == "masked-lm"
    )


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
