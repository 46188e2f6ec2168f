"""What image encoders read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgetie.bundle.names import GRID, PIXELS
from edgetie.export.images.image_inputs import ImageInputs, find_image_inputs


class Encoder(torch.nn.Module):
    def __init__(self, **vision: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(vision_config=SimpleNamespace(**vision))


def test_images_of_one_size() -> None:
    inputs = ImageInputs((3, 8, 8))
    assert inputs.names == (PIXELS,)
    (pixels,) = inputs.tensors(torch.float16)
    assert (pixels.example.shape, pixels.example.dtype) == ((2, 3, 8, 8), torch.float16)
    assert pixels.axes == {0: "images"}
    random = np.random.default_rng(0)
    assert inputs.example(random)[PIXELS].shape == (1, 3, 8, 8)
    assert inputs.example(random, larger=True)[PIXELS].shape == (2, 3, 8, 8)
    assert ImageInputs((3, 8, 8), outer=1).example(random)[PIXELS].shape == (1, 1, 3, 8, 8)


def test_patches_with_a_grid() -> None:
    inputs = ImageInputs((96,), has_grid=True, merge=2)
    pixels, grid = inputs.tensors(torch.float32)
    assert (pixels.name, grid.name) == (PIXELS, GRID)
    assert (pixels.axes, grid.axes) == ({0: "patches"}, {})
    assert pixels.example.shape[0] == grid.example.prod()
    random = np.random.default_rng(0)
    small, large = inputs.example(random), inputs.example(random, larger=True)
    assert small[PIXELS].shape[0] < large[PIXELS].shape[0]
    assert large[GRID].tolist() == [[1, *large[GRID][0, 1:].tolist()]]


def test_the_first_inputs_that_can_be_encoded() -> None:
    module = Encoder(num_channels=1, image_size=[4, 6], patch_size=2)

    def embed(feeds: Any) -> Any:
        if feeds[PIXELS].ndim != 5:
            raise ValueError("an axis for prompts is missing")
        return [feeds[PIXELS]]

    inputs, _ = find_image_inputs(module, lambda pixel_values: None, embed)
    assert inputs == ImageInputs((1, 4, 6), outer=1)
    with pytest.raises(TypeError, match="no shape of pixel_values"):
        find_image_inputs(module, lambda pixel_values: None, lambda feeds: 1 / 0)


def test_a_grid_comes_from_the_signature() -> None:
    module = Encoder(in_channels=3, patch_size=4, temporal_patch_size=2, spatial_merge_size=2)
    inputs, _ = find_image_inputs(module, lambda pixel_values, image_grid_thw: 0, lambda feeds: [])
    assert inputs == ImageInputs((96,), has_grid=True, merge=2)
