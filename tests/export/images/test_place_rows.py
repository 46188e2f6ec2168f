"""Rows of an encoder in the places of tokens."""

from __future__ import annotations

import pytest
import torch

from edgetie.export.images.place_rows import PlaceRows

MASK = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]]).bool()


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.arange(24.0).view(2, 4, 3)


@pytest.fixture
def rows() -> torch.Tensor:
    return -torch.arange(1.0, 10.0).view(3, 3)


def test_rows_are_scattered(hidden: torch.Tensor, rows: torch.Tensor) -> None:
    expected = hidden.masked_scatter(MASK[..., None], rows)
    with PlaceRows(MASK):
        assert torch.equal(hidden.masked_scatter(MASK[..., None], rows), expected)


def test_rows_are_added(hidden: torch.Tensor, rows: torch.Tensor) -> None:
    expected = hidden.clone()
    expected[MASK, :] += rows
    with PlaceRows(MASK):
        result = hidden.clone()
        result[MASK, :] = result[MASK, :] + rows
    assert torch.equal(result, expected)


def test_other_tokens_are_replaced_by_one_row(hidden: torch.Tensor) -> None:
    other, row = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1]]).bool(), torch.ones(3)
    expected = hidden.clone()
    expected[other] = row
    with PlaceRows(MASK):
        result = hidden.clone()
        if other.any():
            result[other] = row
    assert torch.equal(result, expected)


def test_a_branch_on_places_is_taken(hidden: torch.Tensor) -> None:
    none = torch.zeros(2, 4, dtype=torch.bool)
    taken = []
    with PlaceRows(MASK):
        if none.any():
            taken.append(True)
            hidden[none] = torch.ones(3)
    assert taken
    assert torch.equal(hidden, torch.arange(24.0).view(2, 4, 3))


def test_other_shapes_are_indexed_as_usual() -> None:
    scores = torch.zeros(2, 4)
    with PlaceRows(MASK):
        scores[MASK] = 1.0
        assert scores[MASK].tolist() == [1.0] * 3
    assert torch.equal(scores.bool(), MASK)
