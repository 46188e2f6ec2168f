"""Small graphs traced by a plan: names, dimensions, notes, and errors of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from models import source_of
from torch import nn

from edgetie.errors import ExportError, UnfusableError
from edgetie.export.tasks.base import Graph, GraphInput, Task
from edgetie.export.tracing.plans import TracePlan
from edgetie.export.tracing.trace import trace
from edgetie.progress import Stages


@dataclass(frozen=True)
class OneGraph(Task):
    """One graph over ids ``(batch, sequence)``."""

    name = "causal-lm"

    @property
    def replaces_attention(self) -> bool:
        return False

    def graphs(self, module: nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        ids = torch.ones(2, 7, dtype=torch.long)
        axes = {0: "batch_size", 1: "sequence_length"}
        return [Graph("model.onnx", module, (GraphInput("input_ids", ids, axes),), ["logits"], 1)]

    def run_reference(self, module: nn.Module) -> Any:
        raise NotImplementedError

    def compare(self, directory: Path, reference: Any, dtype: type[Any]) -> Any:
        raise NotImplementedError


class Model(nn.Module):
    def __init__(self, body: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(9, 4), nn.Embedding(100, 4)
        self.body = body

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return self.body(x)


def run(model: nn.Module, **fields: Any) -> Any:
    plan = TracePlan(OneGraph(9, None), True, **fields)
    return trace(source_of(model), plan, last_only=False, progress=Stages())


def test_names_dimensions_and_the_length_of_tables() -> None:
    model = Model()
    traced = run(model, notes=("KV cache: none",))
    graph = traced.models["model.onnx"].graph
    assert [value.name for value in graph.inputs] == ["input_ids"]
    assert [str(size) for size in graph.inputs[0].shape] == ["batch_size", "sequence_length"]
    assert [value.name for value in graph.outputs] == ["logits"]
    assert traced.task.max_positions == 100
    assert traced.unfused == ["KV cache: none"]
    weight = graph.initializers["tokens.weight"].const_value
    assert weight.numpy().ctypes.data == model.tokens.weight.data_ptr()  # by reference


def test_operators_that_write_are_decomposed() -> None:
    traced = run(Model(lambda x: x.clone().add_(1)))
    types = {node.op_type for node in traced.models["model.onnx"].graph}
    assert "Add" in types


@pytest.mark.slow
def test_a_failed_conversion_is_logged_and_repeated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="edgetie.export.tracing.trace"):
        traced = run(Model(lambda x: torch.special.xlog1py(x, x.abs())))
    assert "Log" in {node.op_type for node in traced.models["model.onnx"].graph}
    assert "converting without decompositions failed" in caplog.text


def branch(x: torch.Tensor) -> torch.Tensor:
    return -x if x.sum() > 0 else x


def unfusable(x: torch.Tensor) -> torch.Tensor:
    try:
        raise UnfusableError("odd heads")
    except UnfusableError as error:
        raise RuntimeError("a library's error") from error


def test_errors_of_torch_are_one_line() -> None:
    with pytest.raises(ExportError, match=r"^torch cannot trace it \(.*data-dependent"):
        run(Model(branch))
    with pytest.raises(UnfusableError, match=r"^odd heads$"):
        run(Model(unfusable))
