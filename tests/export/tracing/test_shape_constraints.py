"""The longest sequence that follows from the ranges of a traced program."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgetie.errors import UnfusableError
from edgetie.export.tasks.base import FRAMES, Graph, GraphInput
from edgetie.export.tracing.shape_constraints import ShapeConstraints, read_shape_constraints

Ranges = dict[str, tuple[int, int | None]]


@pytest.mark.parametrize(
    ("ranges", "configured", "expected"),
    [
        ({}, None, None),
        ({"sequence_length": (1, None)}, 128, 128),
        ({"sequence_length": (1, 100)}, 128, 100),
        ({"sequence_length": (1, 100)}, 80, 80),
        ({FRAMES: (1, 3)}, 128, 128),
        # past + sequence <= 100
        ({"sequence_length": (1, 100), "past_sequence_length": (0, 99)}, None, 100),
        ({"past_sequence_length": (0, 99)}, None, 100),
    ],
)
def test_longest_sequence(ranges: Ranges, configured: int | None, expected: int | None) -> None:
    assert ShapeConstraints(ranges).max_positions(configured) == expected


def test_short_limits_are_branches_unless_they_are_a_table() -> None:
    short = ShapeConstraints({"sequence_length": (1, 20)})
    with pytest.raises(UnfusableError, match="holds for up to 20 tokens only"):
        short.max_positions(128)
    assert short.max_positions(20) == 20
    assert short.max_positions(128, sizes={20, 64}) == 20
    with pytest.raises(UnfusableError, match="batches of up to 2 only"):
        ShapeConstraints({"batch_size": (1, 2)}).max_positions(128)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 4)

    def forward(self, ids: torch.Tensor, features: torch.Tensor) -> Any:
        return self.table.weight[: ids.shape[1]].expand(ids.shape[0], -1, -1) + features


def test_ranges_are_read_from_a_program() -> None:
    ids = torch.ones(2, 7, dtype=torch.long)
    tensors = (
        GraphInput("input_ids", ids, {0: "batch_size", 1: "sequence_length"}),
        GraphInput("features", torch.ones(4), {}),
    )
    graph = Graph("model.onnx", Positions(), tensors, ["logits"], 2)
    program = torch.export.export(
        graph.module, graph.arguments, dynamic_shapes=graph.shapes, strict=False
    )
    ranges = read_shape_constraints(program, graph).ranges
    assert ranges.keys() == {"batch_size", "sequence_length"}
    assert ranges["batch_size"][1] is None
    assert ranges["sequence_length"][1] == 100
