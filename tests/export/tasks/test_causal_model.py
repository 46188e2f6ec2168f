"""The wrapper around causal models: aligned batches, last tokens, caches."""

from __future__ import annotations

import models
import pytest
import torch

from edgetie.errors import UnfusableError
from edgetie.export.tasks.causal import trial_run
from edgetie.export.tasks.causal_model import CausalCall, CausalLM, cache_layers, causal_arguments
from edgetie.graph.tensors import CacheTensor

IDS = torch.tensor([[5, 6, 7, 8]])
PADDED = torch.tensor([[0, 0, 5, 6], [7, 8, 0, 0], [3, 4, 5, 6]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])


def test_unfused_steps_give_the_logits_of_the_whole() -> None:
    module = models.transformers_model("Llama")
    task = trial_run(module, module.config)
    wrapper = CausalLM(module, task.call, task.cache, fused=False, last_only=False)
    past = [torch.zeros(tensor.shape(1)) for tensor in task.cache]
    with torch.no_grad():
        expected = module(IDS).logits
        first, *past = wrapper(IDS[:, :3], torch.ones(1, 3, dtype=torch.long), *past)
        second, *past = wrapper(IDS[:, 3:], torch.ones(1, 4, dtype=torch.long), *past)
    logits = torch.cat([first, second], dim=1)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert [tensor.shape[2] for tensor in past] == [4] * len(task.cache)


def test_padding_on_either_side_does_not_change_positions() -> None:
    module = models.transformers_model("Llama")
    task = trial_run(module, module.config)
    wrapper = CausalLM(module, task.call, task.cache, fused=False, last_only=False)
    past = [torch.zeros(tensor.shape(3)) for tensor in task.cache]
    with torch.no_grad():
        logits, *_ = wrapper(PADDED, MASK, *past)
        for item, valid in enumerate(MASK.bool()):
            expected = module(PADDED[item][valid][None]).logits[0]
            torch.testing.assert_close(logits[item][valid], expected, atol=1e-4, rtol=1e-4)


def test_recurrent_states_need_fused_attention() -> None:
    cache = (CacheTensor("0.conv_state", (4, 3)),)
    call = CausalCall("transformers")
    wrapper = CausalLM(models.hand_written(), call, cache, fused=False, last_only=True)
    with pytest.raises(UnfusableError, match="recurrent states with attention"):
        wrapper(IDS, torch.ones_like(IDS), torch.zeros(1, 4, 3))


def test_layers_have_keys_and_values_in_turn() -> None:
    tensors = tuple(torch.full((1, 1, 2, 8), float(value)) for value in range(4))
    layers = cache_layers(tensors)
    assert [float(layer.past_key[0, 0, 0, 0]) for layer in layers] == [0, 2]
    assert [float(layer.past_value[0, 0, 0, 0]) for layer in layers] == [1, 3]


def test_attention_that_is_not_causal_is_refused() -> None:
    query = torch.zeros(1, 1, 2, 8)
    call = {"query": query, "key": query, "value": query}
    assert causal_arguments({**call, "is_causal": True, "scale": 0.5})[3] == 0.5
    for wrong in ({}, {"is_causal": True, "attn_mask": torch.ones(2, 2)}):
        with pytest.raises(UnfusableError, match="not is_causal=True"):
            causal_arguments({**call, **wrong})
