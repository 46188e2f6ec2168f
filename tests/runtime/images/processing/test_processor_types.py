"""Types of image processors and their defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from image_cases import assert_equal

from edgetie.errors import BundleError
from edgetie.runtime.images.processing.processor_types import PROCESSOR_TYPES, processor_type
from edgetie.runtime.images.processing.settings import ImageSettings


def named(name: str, setting: str = "image_processor_type") -> ImageSettings:
    return ImageSettings(Path("preprocessor_config.json"), {setting: name})


@pytest.mark.parametrize("name", PROCESSOR_TYPES)
def test_defaults_are_those_of_transformers(name: str) -> None:
    processor = getattr(transformers, f"{name}Pil")()
    for setting, value in processor_type(named(name)).defaults.items():
        expected = getattr(processor, setting)
        if isinstance(value, dict):
            expected = dict(expected)
        elif isinstance(value, list):
            value, expected = tuple(value), tuple(expected)
        assert value == expected, setting


@pytest.mark.parametrize("name", PROCESSOR_TYPES)
def test_a_type_alone_is_enough(name: str, tmp_path: Path) -> None:
    if name != "DonutImageProcessor":  # large pages
        assert_equal(tmp_path, name.removesuffix("ImageProcessor"))


def test_older_names_are_the_same_types() -> None:
    expected = processor_type(named("ViTImageProcessor"))
    assert processor_type(named("ViTImageProcessorFast")) == expected
    assert processor_type(named("ViTImageProcessorPil")) == expected
    assert processor_type(named("ViTFeatureExtractor", "feature_extractor_type")) == expected


def test_other_types_are_refused_by_name() -> None:
    with pytest.raises(BundleError, match=r"SamImageProcessor is not implemented .*pixel_values"):
        processor_type(named("SamImageProcessor"))
    for settings in ({}, {"image_processor_type": 3}):
        with pytest.raises(BundleError, match="no image_processor_type"):
            processor_type(ImageSettings(Path("preprocessor_config.json"), settings))
