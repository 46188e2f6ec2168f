"""Modules of one's own, written in the ways that people write them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch

from edgetie.errors import EdgetieError, ExportError
from edgetie.export.exporter import export_model
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session
from edgetie.sources.source import Source


@dataclass
class Settings:
    """A configuration that is none of transformers'."""

    n_embd: int = 64
    block_size: int = 128


class Configured(models.HandWritten):
    def __init__(self) -> None:
        super().__init__()
        self.config = Settings()


class LossFirst(models.HandWritten):
    def forward(self, input_ids: Any, position_ids: Any, labels: Any = None) -> Any:
        return {"logits": (None, super().forward(input_ids, position_ids))}


class Short(models.Cacheless):
    """For 32 tokens, and it checks that."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = torch.nn.Embedding(32, 64)

    def forward(self, input_ids: Any) -> Any:
        assert input_ids.shape[1] <= 32
        return super().forward(input_ids)


class FewTokens(models.HandWritten):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(10, 64)
        self.head = torch.nn.Linear(64, 10, bias=False)
        self.head.weight = self.tokens.weight


class LastOnly(models.Cacheless):
    def forward(self, input_ids: Any, targets: Any = None) -> Any:
        return super().forward(input_ids)[:, [-1], :], None


def source(module: torch.nn.Module) -> Source:
    config = getattr(module, "config", None)
    return Source("factory", "own", module.eval(), config, lambda target: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "longest"), [(Configured, 128), (LossFirst, 128), (Short, 32), (FewTokens, 128)]
)
def test_tokens_are_those_of_torch(tmp_path: Path, kind: Any, longest: int) -> None:
    torch.manual_seed(0)
    module = kind()
    report = export_model(source(module), tmp_path / "bundle")
    assert report.agreement.relative < 1e-4
    assert report.manifest.signature.max_positions == longest
    session = open_session(report.bundle)
    steps = generate(session, [[5, 7, 3]], max_new_tokens=200, stop_token_ids=frozenset())
    tokens = [5, 7, 3] + [int(step.tokens[0]) for step in steps]
    assert len(tokens) == longest + 1  # the last one is not read
    whole = torch.tensor([tokens[:-1]])
    positions = () if kind is Short else (torch.arange(longest)[None],)
    with torch.no_grad():
        output = module(whole, *positions)
    logits = output["logits"][1] if isinstance(output, dict) else output
    chosen = logits[0, 2:].argmax(-1).tolist()
    assert sum(a == b for a, b in zip(chosen, tokens[3:], strict=True)) > 0.98 * len(chosen)


def test_logits_of_one_token_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"logits of 1 of .* those of every token"):
        export_model(source(LastOnly()), tmp_path / "bundle")


@pytest.mark.slow
def test_several_sequences_go_on_token_by_token(tmp_path: Path) -> None:
    report = export_model(source(models.hand_written()), tmp_path / "bundle")
    decoder = Decoder(open_session(report.bundle), 2, 16)
    decoder.prefill(np.array([[3, 4, 5], [6, 7, 8]]))
    with pytest.raises(EdgetieError, match="go on with step"):
        decoder.prefill(np.array([[3, 4], [6, 7]]))
    assert decoder.step(np.array([3, 6])).shape == (2, models.VOCAB)
