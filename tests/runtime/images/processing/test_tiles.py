"""Images in tiles, against transformers' processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from image_cases import assert_equal, drawn, write_settings

from edgetie.runtime.images.processor import ImageProcessor


@pytest.mark.parametrize("kind", ["Idefics3", "SmolVLM"])
@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 64}},
        {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}},
        {"do_image_splitting": False, "max_image_size": {"longest_edge": 64}},
        {"size": {"height": 100, "width": 300}, "max_image_size": {"longest_edge": 100}},
    ],
)
def test_rows_of_tiles_are_those_of_transformers(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    assert_equal(tmp_path, kind, **settings)


def test_images_are_not_split_beyond_a_size(tmp_path: Path) -> None:
    settings = {"size": {"longest_edge": 5001}, "max_image_size": {"longest_edge": 1024}}
    assert_equal(tmp_path, "Idefics3", sizes=[(7, 100), (100, 7)], **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 48, "width": 48}},
        {"crop_to_patches": True, "size": {"height": 48, "width": 48}},
        {"crop_to_patches": True, "min_patches": 3, "max_patches": 6, "size": 32},
        {"crop_to_patches": True, "max_patches": 1, "size": {"height": 32, "width": 48}},
        {"crop_to_patches": True, "do_resize": False, "size": 200},
    ],
)
def test_the_best_tiling_is_that_of_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    assert_equal(tmp_path, "GotOcr2", **settings)


def test_rows_and_columns_leave_out_the_whole_image(tmp_path: Path) -> None:
    settings = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}
    process = ImageProcessor.from_bundle(write_settings(tmp_path, "Idefics3", **settings))
    image = process(drawn(50, 100))
    assert (image.rows, image.columns) == (1, 2)
    assert image.feeds["pixel_values"].shape == (1, 3, 3, 64, 64)
    process = ImageProcessor.from_bundle(write_settings(tmp_path, "GotOcr2", size=32))
    assert (process(drawn(50, 100)).rows, process(drawn(50, 100)).columns) == (0, 0)
