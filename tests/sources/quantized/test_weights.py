"""Weights of groups of columns: blocks of any size, and why there are none."""

from __future__ import annotations

import numpy as np
import pytest

from edgetie.sources.quantized.weights import (
    FloatWeight,
    GroupedWeight,
    even_groups,
    repeat_rows,
    unsigned,
)


def grouped(groups: np.ndarray, *, offsets: bool = False) -> GroupedWeight:
    rng, count = np.random.default_rng(0), int(groups.max()) + 1
    return GroupedWeight(
        "a type",
        4,
        rng.integers(0, 16, (3, len(groups)), np.uint8),
        rng.random((3, count), np.float32),
        rng.integers(0, 16, (3, count), np.uint8),
        groups,
        rng.random((3, count), np.float32) if offsets else None,
    )


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize(
    ("columns", "group", "block"), [(64, 16, 16), (192, 96, 32), (768, 768, 128), (80, 48, 16)]
)
def test_blocks_have_the_values_of_groups(
    columns: int, group: int, block: int, offsets: bool
) -> None:
    weight = grouped(np.arange(columns) // group, offsets=offsets)
    assert weight.obstacle is None
    blocks = weight.in_blocks()
    assert (blocks.block, blocks.bits, blocks.type) == (block, 4, "a type")
    assert np.array_equal(blocks.dequantize(), weight.dequantize())


def test_groups_in_another_order_are_blocks_too() -> None:
    weight = grouped(np.repeat([2, 0, 1], 32))
    assert np.array_equal(weight.in_blocks().dequantize(), weight.dequantize())


def test_what_is_not_in_blocks_says_why() -> None:
    small, mixed = grouped(np.arange(64) // 8), grouped(np.arange(64) % 2)
    assert small.obstacle == "its groups of columns do not divide into blocks of 16"
    assert mixed.obstacle == "columns of a group are not neighbours, as with desc_act"
    expected = (mixed.values - mixed.zero_points[:, mixed.groups].astype(np.float32)) * (
        mixed.scales[:, mixed.groups]
    )
    assert np.array_equal(mixed.dequantize(), expected)
    assert FloatWeight("another", np.ones((2, 2))).obstacle == "its values are not evenly spaced"


def test_parameters_of_several_rows_are_repeated() -> None:
    pairs = np.array([[1, 2], [3, 4]])
    assert repeat_rows(pairs, 4).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert repeat_rows(np.array([5]), 2).tolist() == [[5], [5]]
    assert repeat_rows(np.array(5), 2).tolist() == [[5], [5]]
    assert even_groups(5, 2).tolist() == [0, 0, 0, 1, 1]
    assert unsigned(np.array([-8, 7], np.int8), 4).tolist() == [0, 15]
    assert unsigned(np.array([-128, 127], np.int8)).tolist() == [0, 255]
