"""Find out what an image encoder reads: images of one size, or patches with a grid."""

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgetie.bundle.names import GRID, PIXELS
from edgetie.export.images.single_image import OneSegment, single_image
from edgetie.export.tasks.base import GraphInput

logger = logging.getLogger(__name__)

_IMAGES = 2  # of an example to trace with
_PATCHES_PER_SIDE = (8, 12)  # of an example with a grid, height and width


@dataclass(frozen=True)
class ImageInputs:
    """What an image encoder reads.

    Attributes:
        shape: of the pixel values of one image, or of one patch if there is a grid.
        outer: number of axes of size 1 before that of the images.
        has_grid: whether there is a grid ``(time, height, width)``: one image a run, of any size.
        merge: number of patches that one token stands for, in height and in width.
    """

    shape: tuple[int, ...]
    outer: int = 0
    has_grid: bool = False
    merge: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        return (PIXELS, GRID) if self.has_grid else (PIXELS,)

    def tensors(self, dtype: torch.dtype) -> tuple[GraphInput, ...]:
        """Inputs to trace with."""
        pixels, *grid = self._example_of(_IMAGES, _PATCHES_PER_SIDE).values()
        axes = {0: "patches"} if self.has_grid else {self.outer: "images"}
        return (
            GraphInput(PIXELS, pixels.to(dtype), axes),
            *(GraphInput(GRID, each, {}) for each in grid),
        )

    def example(self, random: np.random.Generator, *, larger: bool = False) -> dict[str, Tensor]:
        """Draw inputs: one image, or, if ``larger``, two or one of more patches."""
        height, width = _PATCHES_PER_SIDE
        sides = (height + 4, width - 4) if larger else (height - 4, width - 4)
        feeds = self._example_of(1 + larger, sides)
        pixels = random.standard_normal(feeds[PIXELS].shape, np.float32)
        return feeds | {PIXELS: torch.from_numpy(pixels)}

    def _example_of(self, images: int, sides: tuple[int, int]) -> dict[str, Tensor]:
        if self.has_grid:
            patches = torch.zeros(sides[0] * sides[1], *self.shape)
            return {PIXELS: patches, GRID: torch.tensor([[1, *sides]])}
        return {PIXELS: torch.zeros(*[1] * self.outer, images, *self.shape)}

    @contextlib.contextmanager
    def single(self, module: nn.Module, feeds: Mapping[str, Tensor]) -> Iterator[None]:
        """Make the encoder traceable while the context lasts."""
        if self.has_grid:
            with single_image(module, feeds[PIXELS].shape[0]):
                yield
        else:
            with _AllImages(), OneSegment():
                yield


class _AllImages(TorchFunctionMode):
    """Keeps all images in one tensor, also those that are zero, which some models drop."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            index = args[1]
            if isinstance(index, Tensor) and index.dtype == torch.bool and index.ndim == 1:
                return args[0]
        if func is torch.Tensor.unbind and isinstance(args[0].shape[0], torch.SymInt):
            return (args[0],)
        if func is torch.Tensor.__len__ and isinstance(args[0].shape[0], torch.SymInt):
            return 1  # list() asks for it first
        return func(*args, **(kwargs or {}))


def find_image_inputs(
    module: nn.Module, encode: Any, embed: Callable[[Mapping[str, Tensor]], list[Tensor]]
) -> tuple[ImageInputs, list[Tensor]]:
    """Find the first inputs that can be encoded, and what ``embed`` returned for them.

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
        merge = setting("spatial_merge_size", "merge_kernel_size", "merge_size") or 1
        merge = merge if isinstance(merge, int) else merge[0]
        times = setting("temporal_patch_size") or 1
        for shape in ((channels * times * patch**2,), (channels, patch, patch)):
            yield ImageInputs(shape, has_grid=True, merge=merge)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        for outer in (0, 1):
            yield ImageInputs((channels, height, width), outer)
