"""Which inputs an image encoder accepts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgetie.bundle.names import GRID, PATCH_SIZES, PIXEL_SIZES, PIXELS, POSITIONS
from edgetie.export.images.find_image_inputs import find_image_inputs
from edgetie.export.images.image_inputs import (
    FixedImages,
    PaddedPatches,
    Patches,
    Pixels,
)


class Encoder(torch.nn.Module):
    def __init__(self, high: int | None = None, **vision: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(vision_config=SimpleNamespace(**vision))
        if high:
            self.config.high_res_vision_config = SimpleNamespace(image_size=high)


def test_the_first_inputs_that_can_be_encoded() -> None:
    module = Encoder(num_channels=1, image_size=[4, 6])

    def embed(feeds: Any) -> Any:
        if feeds[PIXELS].ndim != 5:
            raise ValueError("an axis for prompts is missing")
        return [feeds[PIXELS]]

    inputs, _ = find_image_inputs(module, lambda pixel_values: None, embed)
    assert inputs == FixedImages({PIXELS: (1, 4, 6)}, outer=1)
    with pytest.raises(TypeError, match="no shape of pixel_values"):
        find_image_inputs(module, lambda pixel_values: None, lambda feeds: 1 / 0)


@pytest.mark.parametrize(
    ("encode", "expected"),
    [
        (lambda pixel_values, image_grid_thw: 0, Patches((), 1, (96,), GRID, 4)),
        (lambda pixel_values, target_sizes: 0, Patches((1, 3, 4), 4, (), PATCH_SIZES, 4)),
        (lambda pixel_values, image_sizes: 0, Pixels(3, 16)),
        (lambda pixel_values, image_position_ids: 0, PaddedPatches(48, POSITIONS, 4)),
    ],
)
def test_arguments_say_how_patches_are_stored(encode: Any, expected: Any) -> None:
    module = Encoder(in_channels=3, patch_size=4, temporal_patch_size=2)
    inputs, _ = find_image_inputs(module, encode, lambda feeds: [])
    assert inputs == expected
    assert PIXEL_SIZES not in inputs.names  # the pixel values have it


def test_sides_of_squares_that_an_encoder_joins() -> None:
    module = Encoder(patch_size=4)

    def embed(feeds: Any) -> Any:
        if feeds[GRID][0, 1] % 3:
            raise ValueError("squares of 3 x 3 patches are joined")
        return []

    inputs, _ = find_image_inputs(module, lambda pixel_values, image_grid_thw: 0, embed)
    assert isinstance(inputs, Patches)
    assert inputs.unit == 6


def test_an_image_in_two_sizes() -> None:
    module = Encoder(high=16, image_size=8)
    inputs, _ = find_image_inputs(
        module, lambda pixel_values, high_res_pixel_values: 0, lambda feeds: []
    )
    assert inputs == FixedImages({PIXELS: (3, 8, 8), "high_res_pixel_values": (3, 16, 16)})
