"""Sizes of images, known while an encoder is traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import vision_utils

from edgetie.export.images.known_sizes import Integer, KnownSizes

SIZES = [(4, 8), (8, 4), (12, 20)]


class Traced(nn.Module):
    """What ``compute`` makes of the grid of an image of ``pixels`` ``(height, width)``."""

    def __init__(self, compute: Any) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, pixels: Tensor, grid: Tensor) -> Any:
        known = KnownSizes()
        known.attach(grid, [[1, pixels.shape[0], pixels.shape[1]]])
        with known:
            return self.compute(grid) + 0 * pixels.sum().long()


def trace(compute: Any) -> Any:
    """A program for images of any size."""
    example = torch.zeros(8, 12), torch.tensor([[1, 8, 12]])
    axis = torch.export.Dim.DYNAMIC
    shapes: Any = ({0: axis, 1: axis}, {})
    with torch.no_grad():
        program = torch.export.export(Traced(compute), example, dynamic_shapes=shapes, strict=False)
    return program.module()


def columns(grid: Tensor) -> Tensor:
    return torch.cat([torch.arange(w).repeat(t * h) for t, h, w in grid.tolist()])


def blocks(grid: Tensor) -> Tensor:
    """Numbers of patches in blocks of 2 x 2, by shapes that are tensors."""
    height, width = grid[0, 1], grid[0, 2]
    counts: Any = torch.arange(grid.prod(-1).sum())
    return counts.view(height // 2, 2, width // 2, 2).transpose(1, 2).flatten()  # type: ignore[no-any-return]


def starts(grid: Tensor) -> Tensor:
    lengths = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
    padded = nn.functional.pad(lengths.cumsum(dim=0), (1, 0))
    parts = torch.split(torch.arange(lengths.sum()), (padded[1:] - padded[:-1]).tolist())
    return torch.cat([part.flip(0) for part in parts])


def rows(grid: Tensor) -> Tensor:
    counts = grid[:, 1] * grid[:, 2]
    widths = torch.repeat_interleave(grid[:, 2], counts)
    return torch.arange(counts.sum()) // widths


def sliced(grid: Tensor) -> Tensor:
    _, height, width = grid.unbind(-1)
    return torch.arange(1000)[height[0] : height[0] + width[0] // 2]


@pytest.mark.parametrize("compute", [columns, blocks, starts, rows, sliced])
def test_a_program_holds_for_images_of_any_size(compute: Any) -> None:
    program = trace(compute)
    for height, width in SIZES:
        grid = torch.tensor([[1, height, width]])
        assert torch.equal(program(torch.zeros(height, width), grid), compute(grid))


@pytest.mark.parametrize("merge", [1, 2])
def test_transformers_functions_can_be_traced(merge: int) -> None:
    def compute(grid: Tensor) -> Tensor:
        positions = vision_utils.get_vision_position_ids(grid, merge)
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grid, 7, spatial_merge_size=merge
        )
        return torch.cat([positions, indices, (weights * 1000).long()], dim=1)

    program = trace(compute)
    for height, width in SIZES:
        grid = torch.tensor([[1, height, width]])
        assert torch.equal(program(torch.zeros(height, width), grid), compute(grid))


def test_what_is_not_known_stays_a_tensor() -> None:
    with KnownSizes() as known:
        grid = known.attach(torch.tensor([[1, 4, 6]]), [[1, 4, 6]])
        assert (grid * torch.tensor(2)).tolist() == [[2, 8, 12]]
        assert torch.tensor([3, 4]).tolist() == [3, 4]
        assert grid.float().mean().item() == pytest.approx(11 / 3)


def test_a_tensor_that_is_written_is_no_longer_known() -> None:
    with KnownSizes() as known:
        grid = known.attach(torch.tensor([[1, 4, 6]]), [[1, 4, 6]])
        grid[0, 1] = 8
        assert grid.tolist() == [[1, 8, 6]]
        other = known.attach(torch.tensor([4, 6]), [4, 6])
        other += 1
        assert other.tolist() == [5, 7]
        assert other.to(torch.int64).tolist() == [5, 7]


def test_integers() -> None:
    assert (Integer("3"), Integer(2.9), Integer(torch.tensor(5))) == (3, 2, 5)
    assert isinstance(3, Integer)
    assert not isinstance("3", Integer)
