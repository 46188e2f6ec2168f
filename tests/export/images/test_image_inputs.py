"""What image encoders read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgetie.bundle.names import GRID, PIXELS
from edgetie.export.images.image_inputs import (
    FixedImages,
    ImageInputs,
    Patches,
    find_image_inputs,
)


class Encoder(torch.nn.Module):
    def __init__(self, **vision: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(vision_config=SimpleNamespace(**vision))


@pytest.mark.parametrize(
    ("inputs", "small", "large", "axes"),
    [
        (FixedImages((3, 8, 8)), (1, 3, 8, 8), (2, 3, 8, 8), {0: "images"}),
        (FixedImages((3, 8, 8), outer=1), (1, 1, 3, 8, 8), (1, 2, 3, 8, 8), {1: "images"}),
        (Patches((96,)), (32, 96), (96, 96), {0: "patches"}),
    ],
)
def test_examples_of_two_sizes(
    inputs: ImageInputs, small: tuple[int, ...], large: tuple[int, ...], axes: dict[int, str]
) -> None:
    random = np.random.default_rng(0)
    assert inputs.example(random)[PIXELS].shape == small
    feeds = inputs.example(random, larger=True)
    assert feeds[PIXELS].shape == large
    assert tuple(feeds) == inputs.names
    traced = inputs.tensors(torch.float16)
    assert [each.name for each in traced] == list(inputs.names)
    assert (traced[0].example.dtype, traced[0].axes) == (torch.float16, axes)


def test_the_patches_of_an_image_are_counted() -> None:
    feeds = Patches((96,)).make(1, (4, 6))
    assert feeds[GRID].tolist() == [[1, 4, 6]]
    assert feeds[PIXELS].shape[0] == 24


def test_the_first_inputs_that_can_be_encoded() -> None:
    module = Encoder(num_channels=1, image_size=[4, 6], patch_size=2)

    def embed(feeds: Any) -> Any:
        if feeds[PIXELS].ndim != 5:
            raise ValueError("an axis for prompts is missing")
        return [feeds[PIXELS]]

    inputs, _ = find_image_inputs(module, lambda pixel_values: None, embed)
    assert inputs == FixedImages((1, 4, 6), outer=1)
    with pytest.raises(TypeError, match="no shape of pixel_values"):
        find_image_inputs(module, lambda pixel_values: None, lambda feeds: 1 / 0)


def test_patches_follow_from_the_parameters() -> None:
    module = Encoder(in_channels=3, patch_size=4, temporal_patch_size=2)
    inputs, _ = find_image_inputs(module, lambda pixel_values, image_grid_thw: 0, lambda feeds: [])
    assert inputs == Patches((96,))
