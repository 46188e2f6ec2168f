"""Images in one part, against transformers' processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_cases import assert_equal, drawn, write_settings

from edgetie.errors import ImageError
from edgetie.runtime.images.processor import ImageProcessor

PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("CLIP", {"size": 48, "crop_size": 40}),
    ("CLIP", {"size": {"height": 50, "width": 70}, "do_center_crop": False}),
    ("CLIP", {"size": {"shortest_edge": 30, "longest_edge": 60}, "do_center_crop": False}),
    ("CLIP", {"size": {"max_height": 30, "max_width": 90}, "do_center_crop": False}),
    ("CLIP", {"do_resize": False, "crop_size": {"height": 41, "width": 64}}),
    ("CLIP", {"do_normalize": False}),
    ("CLIP", {"do_rescale": False, "image_mean": 100.0, "image_std": [50.0, 60.0, 70.0]}),
    ("Siglip", {"size": [32, 48], "do_pad": True, "pad_size": {"height": 50, "width": 50}}),
    ("ViT", {"size": 32, "resample": 1}),
    ("Gemma3", {"size": {"height": 96, "width": 96}}),
]


@pytest.mark.parametrize(("kind", "settings"), PLAIN)
def test_steps_are_those_of_transformers(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    assert_equal(tmp_path, kind, **settings)


def test_squares_have_the_mean_colour(tmp_path: Path) -> None:
    assert_equal(tmp_path, "Llava", do_pad=True)
    assert_equal(tmp_path, "Llava", do_pad=True, do_center_crop=False, size=64)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": [96, 128]},
        {"size": {"height": 90, "width": 120}, "do_align_long_axis": True},
        {"size": {"height": 120, "width": 90}, "do_align_long_axis": True, "do_thumbnail": True},
    ],
)
def test_pages_are_those_of_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    assert_equal(tmp_path, "Donut", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"longest_edge": 96}, "patch_size": 14},
        {"size": {"height": 64, "width": 200}, "patch_size": {"height": 16, "width": 8}},
    ],
)
def test_aspect_ratios_are_kept_as_in_transformers(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    assert_equal(tmp_path, "Pixtral", **settings)


def test_images_larger_than_their_place_are_refused(tmp_path: Path) -> None:
    settings = {"size": 20, "do_pad": True, "pad_size": 10}
    process = ImageProcessor.from_bundle(write_settings(tmp_path, "ViT", **settings))
    with pytest.raises(ImageError, match="20 x 20 pixels is larger than 10 x 10"):
        process(drawn(5, 5))
    settings = {"size": {"height": 20, "width": 30}, "do_thumbnail": False}
    process = ImageProcessor.from_bundle(write_settings(tmp_path, "Donut", **settings))
    with pytest.raises(ImageError, match="80 x 20 pixels is larger than 30 x 20"):
        process(drawn(10, 40))


def test_images_are_contiguous_float32(tmp_path: Path) -> None:
    process = ImageProcessor.from_bundle(write_settings(tmp_path, "CLIP", do_rescale=False))
    pixels = process(drawn(9, 9)).feeds["pixel_values"]
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
