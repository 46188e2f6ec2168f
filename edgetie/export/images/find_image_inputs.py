"""Find out what an image encoder reads."""

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from edgetie.bundle.names import (
    GRID,
    MASKED_SIZES,
    PATCH_MASK,
    PATCH_SIZES,
    PIXEL_SIZES,
    PIXELS,
    POSITIONS,
)
from edgetie.export.images.image_inputs import (
    FixedImages,
    ImageInputs,
    PaddedPatches,
    Patches,
    Pixels,
)

logger = logging.getLogger(__name__)

_UNITS = (4, 6)  # patches; encoders join squares of 2, 3 or 4


def find_image_inputs(
    module: nn.Module,
    encode: Callable[..., Any],
    embed: Callable[[Mapping[str, Tensor]], list[Tensor]],
) -> tuple[ImageInputs, list[Tensor]]:
    """Find the first inputs that can be encoded, and what ``embed`` returned for them.

    Args:
        module: the model; its configuration has the sizes.
        encode: the encoder's function, whose parameters name the inputs.
        embed: runs it.

    Raises:
        TypeError: if none can.
    """
    last_error: Exception | None = None
    parameters = inspect.signature(encode).parameters
    for inputs in _candidates(_Settings(module.config), parameters):
        try:
            return inputs, embed(inputs.example(np.random.default_rng(0)))
        except Exception as error:
            logger.debug("%s cannot be encoded", inputs, exc_info=True)
            last_error = error
    raise TypeError(f"no shape of {PIXELS} is known that it accepts") from last_error


class _Settings:
    """Settings of an image encoder."""

    def __init__(self, config: Any, prefix: str = "") -> None:
        self.config = config
        self._configs = [getattr(config, f"{prefix}vision_config", config), config]

    def numbers(self, *names: str) -> tuple[int, ...]:
        """The first setting that there is; empty if there is none."""
        for config in self._configs:
            for name in names:
                value = getattr(config, name, None)
                if isinstance(value, int):
                    return (value,)
                if isinstance(value, (list, tuple)):
                    return tuple(value)
        return ()

    @property
    def channels(self) -> int:
        return (self.numbers("num_channels", "in_channels", "in_chans") or (3,))[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image; empty if it is not set."""
        size = self.numbers("image_size")
        return (self.channels, size[0], size[-1]) if size else ()


def _candidates(
    settings: _Settings, parameters: Mapping[str, inspect.Parameter]
) -> Iterator[ImageInputs]:
    if patch := settings.numbers("patch_size"):
        for unit in _UNITS:
            yield from _candidates_of_any_size(settings, patch, parameters, unit)
    required = [name for name, each in parameters.items() if each.default is each.empty]
    names = [name for name in required if name.endswith(PIXELS)]
    shapes = {name: _Settings(settings.config, name.removesuffix(PIXELS)).shape for name in names}
    if all(shapes.values()):
        has_mask = PATCH_MASK in required
        text = next((name for name in required if name.endswith("input_ids")), None)
        for outer in (1,) if has_mask else (0, 1):
            yield FixedImages(shapes, outer, has_mask, text)


def _candidates_of_any_size(
    settings: _Settings, patch: tuple[int, ...], parameters: Collection[str], unit: int
) -> Iterator[ImageInputs]:
    channels, height, width = settings.channels, patch[0], patch[-1]
    if GRID in parameters:
        times = (settings.numbers("temporal_patch_size") or (1,))[0]
        yield Patches((), 1, (channels * times * height * width,), GRID, unit)
        yield Patches((), 1, (channels, height, width), GRID, unit)
    if PATCH_SIZES in parameters:
        yield Patches((1, channels, height), width, (), PATCH_SIZES, unit)
    if PIXEL_SIZES in parameters:
        yield Pixels(channels, height * unit)
    pool = (settings.numbers("pooling_kernel_size") or (1,))[0]
    for size in (POSITIONS, MASKED_SIZES):
        if size in parameters:
            yield PaddedPatches(channels * height * width, size, unit)
            yield PaddedPatches(channels * height * width * pool**2, size, unit)
