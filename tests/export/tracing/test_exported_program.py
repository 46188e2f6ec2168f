"""Programs rewritten for torch.onnx: equivalent operators, constants, views, loops over experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from models import source_of
from torch import nn

from edgetie.export.exporter import export_model
from edgetie.export.tracing.exported_program import reset_after_failure, rewrite_for_onnx


class Sparse(nn.Module):
    """Keeps what is above a threshold that a distribution gives (Gemma 3n)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        threshold = torch.distributions.normal.Normal(0, 1).icdf(torch.tensor(0.95))
        return nn.functional.relu(x - x.std(dim=-1, keepdim=True) * threshold)


class Shared(nn.Module):
    """Gives each token to the expert it likes best; each expert reads its own tokens (JetMoe)."""

    def __init__(self) -> None:
        super().__init__()
        self.choice = nn.Linear(64, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, 64)
        chosen = self.choice(rows).argmax(-1)
        _, order = chosen.sort(0)
        sizes = nn.functional.one_hot(chosen, 3).sum(0).tolist()
        parts = rows[order].split(sizes)
        made = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        return torch.zeros_like(rows).index_add(0, order, made).view(x.shape)


class Looped(nn.Module):
    """Loops over the experts that some token chose (Switch Transformers)."""

    def __init__(self) -> None:
        super().__init__()
        self.choice = nn.Linear(64, 3, bias=False)
        self.experts = nn.ModuleDict({f"expert_{i}": nn.Linear(64, 64) for i in range(3)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, 64)
        chosen = nn.functional.one_hot(self.choice.to(torch.float32)(rows).argmax(-1), 3).T
        made = torch.zeros_like(rows)
        for index in (chosen.sum(-1) > 0).nonzero():
            (places,) = torch.where(chosen[index].squeeze(0))
            made.index_add_(0, places, self.experts[f"expert_{index[0]}"](rows[places]))
        return made.view(x.shape)


class Viewed(nn.Module):
    """Attention whose result is viewed as heads of another size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.view(*x.shape[:2], 4, 16).transpose(1, 2)
        made = nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        wide = made.transpose(1, 2).contiguous().view(*x.shape[:2], 2, 32)
        return wide.flip(-1).view(x.shape)


@pytest.mark.slow
@pytest.mark.parametrize("part", [Sparse, Shared, Looped, Viewed])
def test_same_logits(tmp_path: Path, part: Any) -> None:
    torch.manual_seed(0)
    model = models.Cacheless()
    model.blocks.insert(0, part())
    report = export_model(source_of(model.eval()), tmp_path / "bundle")
    assert report.agreement.relative < 1e-5
    assert [group.shape for group in report.manifest.ties] == [(models.VOCAB, 64)]


class Constants(nn.Module):
    """One constant that is only read, and one that is written to."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        read, written = torch.tensor([0.5, 0.25]), torch.tensor([1.0, 2.0])
        return x * read.erfinv() + (written.add_(x) if self.training else written)


@pytest.mark.parametrize("writes", [False, True])
def test_constants_are_evaluated_unless_written_to(writes: bool) -> None:
    x = torch.tensor([3.0, 4.0])
    module = Constants().train(writes)
    program = torch.export.export(module, (x,), strict=False)
    assert rewrite_for_onnx(program) is not writes
    targets = {node.target for node in program.graph.nodes}
    assert (torch.ops.aten.erfinv.default in targets) is writes
    np.testing.assert_allclose(program.module()(x), module(x), rtol=1e-6)


class Operators(nn.Module):
    """Operators that are replaced: views, maximum, ``&``, a copy, and attention."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.max(x, -x).view(1, 1, 4, 4) + torch.tensor([1.0])
        mask = (y > 0).__and__(y < 5)
        heads = nn.functional.scaled_dot_product_attention(y, y, y)
        return heads.view(4, 4).to(torch.float64).float() * mask[0, 0]


def test_operators_without_an_onnx_function_are_replaced() -> None:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    module = Operators()
    program = torch.export.export(module, (x,), strict=False)
    assert rewrite_for_onnx(program)
    aten = torch.ops.aten
    targets = {node.target for node in program.graph.nodes}
    assert targets.isdisjoint({aten.view.default, aten.max.other, aten.__and__.Tensor})
    assert {aten.reshape.default, aten.maximum.default, aten._to_copy.default} <= targets
    assert aten.clone.default in targets  # of attention's output
    torch.testing.assert_close(program.module()(x), module(x))


def test_symbols_of_a_failed_conversion_are_forgotten() -> None:
    program = torch.export.export(Operators(), (torch.ones(4, 4),), strict=False)
    reset_after_failure(program)  # without symbols: nothing to do
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(nn.ReLU(), (torch.ones(4),), dynamic_shapes=dynamic, strict=False)
    values = [node.meta.get("val") for node in program.graph.nodes]
    shapes = torch._guards.detect_fake_mode(values).shape_env
    shapes.create_unbacked_symint()
    assert shapes.pending_fresh_unbacked_symbols
    reset_after_failure(program)
    assert not shapes.pending_fresh_unbacked_symbols
