"""Settings of image processors, good and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetie.errors import BundleError
from edgetie.runtime.images.processing.settings import (
    ImageSettings,
    read_image_settings,
    read_prompt_settings,
)


def settings(**values: Any) -> ImageSettings:
    return ImageSettings(Path("preprocessor_config.json"), values)


def write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def test_settings_are_checked_when_they_are_read() -> None:
    values = settings(a=3, b=True, c=[1, 2], d={"height": 3, "width": None}, e=0.5, f="<image>")
    assert values.count("a") == 3
    assert values.flag("b")
    assert not values.flag("missing")
    assert values.size("c") == {"height": 1, "width": 2}
    assert values.size("a", integer=("shortest_edge",)) == {"shortest_edge": 3}
    assert values.size("d") == {"height": 3}
    assert values.height_width("c", ("width", "height")) == (2, 1)
    assert values.number("e") == 0.5
    assert values.channels("e").tolist() == [0.5] * 3
    assert values.channels("e").dtype == np.float32


@pytest.mark.parametrize("value", [None, -1, 0, "x", [], [1, 2, 3, 4], {"height": 0}, {}, 1 << 40])
def test_wrong_settings_are_refused_by_name(value: object) -> None:
    values = settings(resample=value, size=value)
    for read in (
        lambda: values.count("size"),
        lambda: values.number("size"),
        lambda: values.size("size"),
        lambda: values.height_width("size"),
    ):
        with pytest.raises(BundleError, match=r"^preprocessor_config\.json: size is .*copy"):
            read()
    with pytest.raises(BundleError, match="resample"):
        settings(resample=9).resample()
    for value in ([1, 2], float("nan"), float("inf"), [1, "a", 2], 0.5):
        with pytest.raises(BundleError, match="image_std is"):
            settings(image_std=value).channels("image_std", least=0.6)


def test_null_stands_for_the_default() -> None:
    values = settings(a=None, b=1).defaulting_to({"a": 2, "b": 3})
    assert (values.count("a"), values.count("b")) == (2, 1)
    assert values.overridden_by({"b": 4}).count("b") == 4


def test_the_processors_file_comes_first(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"preprocessor_config\.json: missing, so images cannot"):
        read_image_settings(tmp_path)
    write(tmp_path / "preprocessor_config.json", {"size": 1, "processor_class": "B"})
    assert read_image_settings(tmp_path).count("size") == 1
    assert read_prompt_settings(tmp_path).values == {"processor_class": "B"}
    write(tmp_path / "tokenizer_config.json", {"processor_class": "A"})
    assert read_prompt_settings(tmp_path).values == {"processor_class": "A"}
    write(tmp_path / "processor_config.json", {"processor_class": "C"})
    assert read_image_settings(tmp_path).count("size") == 1
    assert read_prompt_settings(tmp_path).values == {"processor_class": "C"}
    write(tmp_path / "processor_config.json", {"image_processor": {"size": 2}})
    assert read_image_settings(tmp_path).count("size") == 2
    write(tmp_path / "processor_config.json", {"image_processor": 3})
    with pytest.raises(BundleError, match=r"processor_config\.json: image_processor is not"):
        read_image_settings(tmp_path)
    (tmp_path / "processor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match="not valid JSON"):
        read_image_settings(tmp_path)
