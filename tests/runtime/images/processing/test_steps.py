"""Single steps, where whole processors do not reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_cases import SIZES, drawn
from transformers.image_transforms import center_crop as theirs

from edgetie.errors import ImageError
from edgetie.runtime.images.processing.settings import ImageSettings
from edgetie.runtime.images.processing.steps import center_crop, place, resize

BILINEAR = ImageSettings(Path("preprocessor_config.json"), {"resample": 2})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", [(5, 5), (64, 3), (300, 301)])
def test_crops_are_those_of_transformers(size: tuple[int, int], crop: tuple[int, int]) -> None:
    pixels = np.asarray(drawn(*size))
    expected = theirs(pixels, crop, input_data_format="channels_last")
    np.testing.assert_array_equal(center_crop(pixels, crop), expected)


def test_an_image_is_placed_on_a_background() -> None:
    canvas = place(np.full((1, 2, 3), 7, np.uint8), (3, 4), (1, 2), np.array([1, 2, 3], np.uint8))
    assert (canvas[1, 2:] == 7).all()
    assert canvas[0, 0].tolist() == [1, 2, 3]
    assert canvas.sum() == 2 * 3 * 7 + 10 * 6


def test_sizes_without_pixels_or_with_too_many_are_refused() -> None:
    pixels = np.asarray(drawn(4, 9))
    for size in ((0, 5), (224, 1 << 20)):
        with pytest.raises(ImageError, match=f"9 x 4 pixels becomes {size[1]} x {size[0]} for"):
            resize(pixels, size, BILINEAR)
