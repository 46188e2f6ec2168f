"""transformers' caches over cache layers and states, and states in attributes of modules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edgetie.export.attention.group_query_attention import CacheLayer
from edgetie.export.attention.transformers_cache import (
    attribute_tensors,
    build_cache,
    recurrent_states,
    run_with_cache,
    states_in_attributes,
)


def cache_layer() -> CacheLayer:
    return CacheLayer(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))


def test_a_cache_of_keys_values_and_states() -> None:
    states = {
        "1.conv_state": torch.ones(1, 4, 3),
        "2.recurrent_state": torch.ones(1, 4),
        "2.recurrent_state_1": torch.zeros(1, 4),
    }
    layers = {0: cache_layer(), 2: cache_layer()}
    cache = build_cache(layers, states)
    assert [type(layer).__name__ for layer in cache.layers] == ["Attention", "Recurrent", "Hybrid"]
    assert cache.get_seq_length() == 3
    assert cache.layers[1].conv_kernel_size[0] == 3
    collected = recurrent_states(cache)
    assert collected.keys() == states.keys()
    assert all(collected[name] is states[name] for name in states)
    key = torch.ones(1, 2, 1, 4)
    full, _ = cache.update(key, key, 0)
    assert full.shape == (1, 2, 4, 4)
    assert layers[0].appended is not None


def test_layers_between_are_empty() -> None:
    cache = build_cache({1: cache_layer()})
    assert [type(layer).__name__ for layer in cache.layers] == ["DummyLayer", "Attention"]
    assert build_cache({}).layers == []


class Stateful(nn.Module):
    """Counts in an attribute, as recurrent models without a cache object do."""

    def __init__(self, writes: bool = True) -> None:
        super().__init__()
        self.part = nn.Linear(2, 2)
        self.part.state = None
        self.writes = writes

    def forward(self, input_ids: torch.Tensor, use_cache: bool, cache: Any = None) -> Any:
        if self.writes:
            before = self.part.state
            self.part.state = torch.ones(1, 4) + (0 if before is None else before)
        return SimpleNamespace(logits=input_ids, cache=cache or "cache")


def test_states_in_attributes_are_found_and_removed() -> None:
    module = Stateful()
    _, cache, states = run_with_cache(module, None, "cache", torch.ones(1, 5, dtype=torch.long))
    assert cache == "cache"
    assert states.keys() == {"part.state"}
    assert module.part.state is None
    assert run_with_cache(Stateful(writes=False), None, "cache", torch.ones(1, 5))[2] == {}


def test_states_are_set_read_back_and_emptied() -> None:
    module = Stateful()
    with states_in_attributes(module, {"part.state": torch.full((1, 4), 5.0)}) as after:
        module(torch.ones(1, 1), use_cache=True)
    assert after["part.state"].tolist() == [[6.0] * 4]
    assert module.part.state is None
    with (
        pytest.raises(RuntimeError, match="the model failed"),
        states_in_attributes(module, {"part.state": torch.ones(1, 4)}),
    ):
        raise RuntimeError("the model failed")
    assert module.part.state is None


def test_parameters_and_buffers_are_not_attributes() -> None:
    module = Stateful()
    module.register_buffer("buffer", torch.ones(2))
    module.part.extra = torch.ones(3)
    assert attribute_tensors(module).keys() == {"part.extra"}
