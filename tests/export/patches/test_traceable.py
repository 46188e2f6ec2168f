"""Model code that torch cannot trace, in a context in which it can."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from edgetie.export.patches.traceable import traceable


class Routed(nn.Module):
    """Loops over the experts that tokens are routed to."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
        mask = nn.functional.one_hot(expert, 3).T
        output = torch.zeros_like(x)
        for index in (mask.sum(-1) > 0).nonzero():
            (tokens,) = torch.where(mask[index].squeeze(0))
            output.index_add_(0, tokens, self.experts[int(index[0])](x[tokens]))
        return output


def test_a_loop_over_experts_is_traced_for_all_of_them() -> None:
    torch.manual_seed(0)
    module = Routed()
    x, one_expert = torch.randn(5, 4), torch.ones(5, dtype=torch.long)
    with traceable(module):
        program = torch.export.export(module, (x, one_expert), strict=False)
    routed = torch.tensor([2, 0, 1, 0, 2])
    torch.testing.assert_close(program.module()(x, routed), module(x, routed))


def test_a_conversion_to_the_same_precision_keeps_parameters() -> None:
    module = nn.Linear(2, 2)
    weight, original = module.weight, nn.Module.to
    with traceable(module):
        assert module.to(torch.float32) is module
        assert module.weight is weight
        assert nn.Linear(2, 2).to(torch.float16).weight.dtype == torch.float16
    assert nn.Module.to is original


def test_dynamic_rotary_embeddings_are_restored() -> None:
    module = nn.Linear(1, 1)
    vars(module).update(SimpleNamespace(rope_type="dynamic").__dict__)
    with traceable(module):
        assert module.rope_type == "default"
    assert module.rope_type == "dynamic"
