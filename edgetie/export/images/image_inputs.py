"""Find out what an image encoder reads: images of one size, or the patches of one of any size."""

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgetie.bundle.names import GRID, PIXELS
from edgetie.export.images.single_image import all_images, single_image
from edgetie.export.tasks.base import GraphInput

logger = logging.getLogger(__name__)

_IMAGES = 2  # of an example to trace with
_PATCHES_PER_SIDE = (8, 12)  # of an example of any size, height and width


@dataclass(frozen=True)
class ImageInputs(ABC):
    """What an image encoder reads.

    Attributes:
        shape: of the pixel values of one image, or of one patch.
    """

    shape: tuple[int, ...]

    @property
    @abstractmethod
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        """Names of dynamic axes, by input, in order."""

    @abstractmethod
    def make(self, images: int, sides: tuple[int, int]) -> dict[str, Tensor]:
        """Make inputs of zeros for so many images, or one of so many patches in height and width.

        The pixel values come first.
        """

    @abstractmethod
    def traceable(self, module: nn.Module, feeds: Mapping[str, Tensor]) -> Any:
        """Return a context that makes the encoder traceable."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.axes)

    def tensors(self, dtype: torch.dtype) -> tuple[GraphInput, ...]:
        """Inputs to trace with."""
        feeds = self.make(_IMAGES, _PATCHES_PER_SIDE)
        feeds[PIXELS] = feeds[PIXELS].to(dtype)
        return tuple(GraphInput(name, feeds[name], axes) for name, axes in self.axes.items())

    def example(self, random: np.random.Generator, *, larger: bool = False) -> dict[str, Tensor]:
        """Draw inputs: one image, or, if ``larger``, two or one of more patches."""
        height, width = _PATCHES_PER_SIDE
        feeds = self.make(1 + larger, (height + 4 if larger else height - 4, width - 4))
        pixels = random.standard_normal(feeds[PIXELS].shape, np.float32)
        return feeds | {PIXELS: torch.from_numpy(pixels)}


@dataclass(frozen=True)
class FixedImages(ImageInputs):
    """Images of one size.

    Attributes:
        outer: number of axes of size 1 before that of the images.
    """

    outer: int = 0

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        return {PIXELS: {self.outer: "images"}}

    def make(self, images: int, sides: tuple[int, int]) -> dict[str, Tensor]:
        return {PIXELS: torch.zeros(*[1] * self.outer, images, *self.shape)}

    def traceable(self, module: nn.Module, feeds: Mapping[str, Tensor]) -> Any:
        return all_images()


@dataclass(frozen=True)
class Patches(ImageInputs):
    """The patches of one image of any size, and their number in time, height and width."""

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        return {PIXELS: {0: "patches"}, GRID: {}}

    def make(self, images: int, sides: tuple[int, int]) -> dict[str, Tensor]:
        patches = torch.zeros(sides[0] * sides[1], *self.shape)
        return {PIXELS: patches, GRID: torch.tensor([[1, *sides]])}

    def traceable(self, module: nn.Module, feeds: Mapping[str, Tensor]) -> Any:
        return single_image(module, feeds[PIXELS].shape[0])


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
    for inputs in _candidates(module, inspect.signature(encode).parameters):
        try:
            return inputs, embed(inputs.example(np.random.default_rng(0)))
        except Exception as error:
            logger.debug("%s cannot be encoded", inputs, exc_info=True)
            last_error = error
    raise TypeError(f"no shape of {PIXELS} is known that it accepts") from last_error


def _candidates(module: nn.Module, parameters: Mapping[str, Any]) -> Iterator[ImageInputs]:
    config: Any = module.config
    configs = [getattr(config, "vision_config", config), config]

    def setting(*keys: str) -> Any:
        values = (getattr(each, key, None) for each in configs for key in keys)
        return next((value for value in values if isinstance(value, (int, list, tuple))), None)

    channels = setting("num_channels", "in_channels", "in_chans") or 3
    patch, size = setting("patch_size"), setting("image_size")
    if GRID in parameters:
        times = setting("temporal_patch_size") or 1
        yield Patches((channels * times * patch**2,))
        yield Patches((channels, patch, patch))
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        for outer in (0, 1):
            yield FixedImages((channels, height, width), outer)
