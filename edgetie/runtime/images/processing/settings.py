"""Read the settings of an image processor, with the defaults of its type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.model_config import read_json
from edgetie.bundle.names import PREPROCESSOR, PROCESSOR
from edgetie.errors import BundleError

_FILTERS = 6  # of Pillow, by number
_LIMIT = 1 << 31


class ImageSettings:
    """Settings of an image processor by name; each is checked when it is read.

    Attributes:
        path: the file that they are from.
        values: of the file, and the defaults of those that it does not have.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        """Leave out settings that are ``null``."""
        self.path = path
        self.values = {name: value for name, value in values.items() if value is not None}

    def defaulting_to(self, defaults: Mapping[str, Any]) -> ImageSettings:
        """Add defaults for settings that are missing."""
        return ImageSettings(self.path, {**defaults, **self.values})

    def overridden_by(self, values: Mapping[str, Any]) -> ImageSettings:
        """Replace settings."""
        return ImageSettings(self.path, {**self.values, **values})

    def flag(self, name: str) -> bool:
        """Read a switch; a missing one is off."""
        return bool(self.values.get(name, False))

    def text(self, name: str, default: str | None = None) -> str:
        """Read a text."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or not value:
            raise self._error(name, "a text")
        return value

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """Read an integer."""
        value = self.values.get(name, default)
        if type(value) is not int or not least <= value < _LIMIT:
            raise self._error(name, f"an integer of {least} or more")
        return value

    def number(self, name: str) -> float:
        """Read a number above 0."""
        value = self.values.get(name)
        if not isinstance(value, int | float) or not 0 < value < _LIMIT:
            raise self._error(name, "a number above 0")
        return float(value)

    def resample(self) -> int:
        """Read the number of Pillow's filter for resizing."""
        value = self.count("resample", least=0)
        if value >= _FILTERS:
            raise self._error("resample", f"the number of a filter, below {_FILTERS}")
        return value

    def channels(self, name: str, least: float = 0.0) -> NDArray[np.float32]:
        """Read one number or three, for red, green and blue: ``(3,)``."""
        value = self.values.get(name)
        numbers = value if isinstance(value, list | tuple) else [value] * 3
        if len(numbers) != 3 or not all(
            isinstance(each, int | float) and least <= each < _LIMIT for each in numbers
        ):
            raise self._error(name, f"a number of {least:g} or more, or three")
        return np.array(numbers, np.float32)

    def size(
        self,
        name: str,
        *,
        integer: tuple[str, ...] = ("height", "width"),
        pair: tuple[str, str] = ("height", "width"),
    ) -> dict[str, int]:
        """Read a size in pixels by the names of its sides.

        Args:
            name: of the setting.
            integer: sides that an integer stands for.
            pair: sides that a list of two integers stands for.
        """
        value = self.values.get(name)
        if isinstance(value, list | tuple) and len(value) == 2:
            value = dict(zip(pair, value, strict=True))
        elif isinstance(value, int):
            value = dict.fromkeys(integer, value)
        if isinstance(value, dict):
            sides = {side: each for side, each in value.items() if each is not None}
            if sides and all(type(side) is int and 0 < side < _LIMIT for side in sides.values()):
                return sides
        raise self._error(name, "a size in pixels above 0")

    def height_width(
        self, name: str, pair: tuple[str, str] = ("height", "width")
    ) -> tuple[int, int]:
        """Read a size that has a height and a width."""
        sides = self.size(name, pair=pair)
        if not {"height", "width"} <= sides.keys():
            raise self._error(name, "a height and a width")
        return sides["height"], sides["width"]

    def _error(self, name: str, expected: str) -> BundleError:
        value = repr(self.values.get(name))[:60]
        return BundleError(
            f"{self.path}: {name} is {value}, not {expected}; copy the file again, or pass "
            "pixel_values from Python"
        )


def read_image_settings(directory: Path) -> ImageSettings:
    """Read the settings of a model's image processor.

    Those in ``processor_config.json`` come before ``preprocessor_config.json``.

    Raises:
        BundleError: if there are none, or they are not a JSON object.
    """
    path = directory / PROCESSOR
    values = read_json(path).get("image_processor")
    if values is None:
        path = directory / PREPROCESSOR
        if not path.is_file():
            raise BundleError(
                f"{path}: missing, so images cannot be read; copy the model's {PREPROCESSOR} into "
                "the bundle, or pass pixel_values from Python"
            )
        values = read_json(path)
    if not isinstance(values, dict):
        raise BundleError(f"{path}: image_processor is not a JSON object; copy it again")
    return ImageSettings(path, values)


def read_prompt_settings(directory: Path) -> ImageSettings:
    """Read the settings that prompts with images depend on, empty if there are none.

    Raises:
        BundleError: if a file is not a JSON object.
    """
    names = ("tokenizer_config.json", PREPROCESSOR)
    path = directory / PROCESSOR
    values = read_json(path)
    kind = [read_json(directory / name).get("processor_class") for name in names]
    return ImageSettings(path, {"processor_class": next(filter(None, kind), None), **values})
