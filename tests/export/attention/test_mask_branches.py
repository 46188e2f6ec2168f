"""Branches on the attention mask: resolved only if every mask of zeros and ones takes the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from edgetie.export.attention.mask_branches import ResolveMaskBranches

_DYNAMIC = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}


class Branch(nn.Module):
    """Branches on a condition that depends on the mask, or on the tokens."""

    def __init__(self, condition: str) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = (1 - mask) * torch.tensor(-5.0)
        scores[mask == 3] = 1.0
        conditions = {"global": scores > 0, "padding": scores < 0, "tokens": ids > 7}
        with ResolveMaskBranches(mask):
            return -scores if conditions[self.condition].any() else scores


def export(module: nn.Module) -> torch.export.ExportedProgram:
    inputs = torch.ones(2, 6, dtype=torch.long), torch.ones(2, 6, dtype=torch.long)
    return torch.export.export(module, inputs, dynamic_shapes=(_DYNAMIC, _DYNAMIC), strict=False)


def test_a_condition_that_is_the_same_for_every_mask_is_resolved() -> None:
    program = export(Branch("global"))
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    np.testing.assert_array_equal(program.module()(mask, mask), (1 - mask) * -5.0)


@pytest.mark.parametrize("condition", ["padding", "tokens"])
def test_other_conditions_are_left_to_torch(condition: str) -> None:
    with pytest.raises(GuardOnDataDependentSymNode):
        export(Branch(condition))


def test_outside_of_a_trace_conditions_are_evaluated() -> None:
    mask = torch.tensor([[1, 3, 0]])
    torch.testing.assert_close(Branch("global")(mask, mask), torch.tensor([[0.0, -1.0, 5.0]]))
