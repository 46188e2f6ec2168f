"""Models whose logits depend on more than their inputs are refused by the reason."""

from __future__ import annotations

import random
from typing import Any

import models
import numpy as np
import pytest
import torch
from models import source_of
from torch import nn

from edgetie.errors import ExportError
from edgetie.export.reference import run_reference


class Renormalized(models.HandWritten):
    """Shrinks the rows that it looks up, in its table."""

    def __init__(self) -> None:
        super().__init__(layers=1)
        self.tokens.max_norm = 0.5


class Untied(Renormalized):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, models.VOCAB, bias=False)


class Around(models.HandWritten):
    """Changes something before its forward, or its logits after it."""

    def __init__(self) -> None:
        super().__init__(layers=1)
        self.register_buffer("history", torch.zeros(3))
        self.calls = 0
        self.dropout = AlwaysTraining(0.1)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        self.before()
        return self.after(super().forward(input_ids, position_ids))

    def before(self) -> None:
        pass

    def after(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


class AlwaysTraining(nn.Dropout):
    def train(self, mode: bool = True) -> Any:
        return super().train(True)


class Decaying(Around):
    def before(self) -> None:
        self.blocks[0].up.weight.data *= 0.99  # unseen by torch's counters of versions


class Shifting(Around):
    def before(self) -> None:
        self.history = torch.roll(self.history + torch.arange(3), 1)


class Counting(Around):
    def after(self, logits: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return logits * (1 + 1e-4 * self.calls)


class Dropping(Around):
    def after(self, logits: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(logits, 1e-4)


class Training(Around):
    def after(self, logits: torch.Tensor) -> torch.Tensor:
        return self.dropout(logits)


class Skipping(Around):
    def after(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if random.random() < 0.9 else 2 * logits


class Drawing(Around):
    """Draws numbers that it does not use."""

    def before(self) -> None:
        torch.rand(3)
        random.random()


class Normalized(Around):
    """Normalizes with statistics of a batch while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(models.VOCAB)

    def after(self, logits: torch.Tensor) -> torch.Tensor:
        return self.batch_norm(logits.transpose(1, 2)).transpose(1, 2)


def run(kind: type[nn.Module]) -> Any:
    torch.manual_seed(0)
    random.seed(0)
    return run_reference(source_of(kind(), "mine"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Renormalized, r"changes tokens\.weight, a parameter .*max_norm"),
        (Untied, r"changes tokens\.weight, a parameter"),
        (Decaying, r"changes blocks\.0\.up\.weight, a parameter .*\(1 in all\)"),
        (Shifting, "changes history, a buffer"),
        (Counting, "change from call to call"),
        (Dropping, "depend on random numbers even in evaluation mode"),
        (Training, "depend on random numbers"),
        (Skipping, "depend on random numbers"),
    ],
)
def test_what_is_refused(kind: type[nn.Module], reason: str) -> None:
    with pytest.raises(ExportError, match=f"^mine: .*{reason}"):
        run(kind)


@pytest.mark.parametrize("kind", [Around, Drawing, Normalized])
def test_what_is_not(kind: type[nn.Module]) -> None:
    _, reference = run(kind)
    assert np.isfinite(reference.logits).all()


def test_a_module_in_training_mode_is_run_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    module = models.HandWritten(layers=1)
    module.norm = nn.Sequential(module.norm, nn.Dropout(0.5))
    source = source_of(module.train())
    _, first = run_reference(source)
    assert not module.training
    _, second = run_reference(source)
    np.testing.assert_array_equal(first.logits, second.logits)
