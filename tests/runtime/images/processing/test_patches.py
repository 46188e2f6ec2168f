"""Images in patches, against transformers' processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from image_cases import assert_equal, drawn, write_settings

from edgetie.errors import ImageError
from edgetie.runtime.images.processor import ImageProcessor


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Qwen2VL", {}),
        ("Qwen2VL", {"min_pixels": 784, "max_pixels": 12544}),
        ("Qwen2VL", {"patch_size": 16, "size": {"shortest_edge": 4096, "longest_edge": 65536}}),
        ("Qwen2VL", {"temporal_patch_size": 1, "merge_size": 3}),
        ("Glm4v", {"size": {"shortest_edge": 12544, "longest_edge": 100352}}),
        ("Glm46V", {"size": {"shortest_edge": 784, "longest_edge": 47040000}, "patch_size": 16}),
        ("Siglip2", {"max_num_patches": 100}),
        ("Siglip2", {"patch_size": 14}),
        ("Gemma4", {"max_soft_tokens": 70}),
        ("Gemma4", {"patch_size": 8, "pooling_kernel_size": 2}),
    ],
)
def test_patches_are_those_of_transformers(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    assert_equal(tmp_path, kind, **settings)


def test_limits_may_be_part_of_the_size(tmp_path: Path) -> None:
    size = {"min_pixels": 784, "max_pixels": 12544}
    inside = ImageProcessor.from_bundle(write_settings(tmp_path, "Qwen2VL", size=size))
    outside = ImageProcessor.from_bundle(write_settings(tmp_path, "Qwen2VL", **size))
    for name, value in inside(drawn(200, 300)).feeds.items():
        assert (value == outside(drawn(200, 300)).feeds[name]).all()


def test_shapes_that_make_no_patches_are_refused(tmp_path: Path) -> None:
    process = ImageProcessor.from_bundle(write_settings(tmp_path, "Qwen2VL"))
    with pytest.raises(ImageError, match="1 x 201 pixels: one side is more than 200 times"):
        process(drawn(201, 1))
    for kind, multiple in (("Qwen2VL", 28), ("Siglip2", 16), ("Gemma4", 48)):
        process = ImageProcessor.from_bundle(write_settings(tmp_path, kind, do_resize=False))
        with pytest.raises(ImageError, match=f"30 x 20 pixels.* in multiples of {multiple};"):
            process(drawn(20, 30))
