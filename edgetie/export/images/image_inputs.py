"""What image encoders read: images of one size, or one image of any size."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgetie.bundle.names import (
    GRID,
    PATCH_MASK,
    PIXEL_SIZES,
    PIXELS,
    POSITIONS,
)
from edgetie.export.images.known_sizes import KnownSizes
from edgetie.export.images.single_image import all_images, single_image
from edgetie.export.tasks.base import GraphInput

_IMAGES = 2  # of an example to trace with
_TEXT = 6  # tokens
_TRACED, _SMALL, _LARGE = (2, 3), (1, 2), (3, 2)  # sides of examples of any size, in units


@dataclass(frozen=True)
class ImageInputs(ABC):
    """What an image encoder reads."""

    @property
    @abstractmethod
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        """Names of dynamic axes of a graph's inputs, in order."""

    @abstractmethod
    def make(self, images: int, sides: tuple[int, int]) -> dict[str, Tensor]:
        """Make arguments of zeros for so many images, or one of so many units in height and width.

        The pixel values come first.
        """

    @abstractmethod
    def traced(
        self, module: nn.Module, inputs: Mapping[str, Tensor]
    ) -> contextlib.AbstractContextManager[Mapping[str, Tensor]]:
        """Return a context in which the encoder can be traced with the arguments that it gives.

        Args:
            module: the model.
            inputs: as :meth:`tensors` has them.
        """

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.axes)

    def tensors(self, dtype: torch.dtype) -> tuple[GraphInput, ...]:
        """Inputs to trace with."""
        feeds = self.make(_IMAGES, _TRACED)
        return tuple(
            GraphInput(name, _as(feeds[name], dtype), axes) for name, axes in self.axes.items()
        )

    def finish(self, model: ir.Model) -> None:  # noqa: B027  # most need nothing
        """Give a traced graph the inputs that processors of images provide."""

    def example(self, random: np.random.Generator, *, larger: bool = False) -> dict[str, Tensor]:
        """Draw arguments: one image, or, if ``larger``, two or one of more patches."""
        feeds = self.make(1 + larger, _LARGE if larger else _SMALL)
        for name, value in feeds.items():
            if value.is_floating_point():
                feeds[name] = torch.from_numpy(random.standard_normal(value.shape, np.float32))
        return feeds


def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


@dataclass(frozen=True)
class FixedImages(ImageInputs):
    """Images of one size.

    Attributes:
        shapes: of one image, by argument; some encoders read it in two sizes.
        outer: number of axes of size 1 before that of the images.
        has_mask: whether a mask says which images are not padding.
        text: name of the argument with a prompt for each image, if the encoder reads one.
    """

    shapes: Mapping[str, tuple[int, ...]]
    outer: int = 0
    has_mask: bool = False
    text: str | None = None

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        axes = {name: {self.outer: "images"} for name in self.shapes}
        return axes | ({self.text: {0: "images", 1: "text_length"}} if self.text else {})

    def make(self, images: int, sides: tuple[int, int]) -> dict[str, Tensor]:
        outer = (*[1] * self.outer, images)
        feeds = {name: torch.zeros(*outer, *shape) for name, shape in self.shapes.items()}
        if self.text:
            feeds[self.text] = torch.arange(images * _TEXT).view(images, _TEXT)
        return feeds | ({PATCH_MASK: torch.ones(outer, dtype=torch.bool)} if self.has_mask else {})

    @contextlib.contextmanager
    def traced(
        self, module: nn.Module, inputs: Mapping[str, Tensor]
    ) -> Iterator[Mapping[str, Tensor]]:
        outer = inputs[PIXELS].shape[: self.outer + 1]
        mask = {PATCH_MASK: torch.ones(outer, dtype=torch.bool)} if self.has_mask else {}
        with all_images():
            yield {**inputs, **mask}


@dataclass(frozen=True)
class Patches(ImageInputs):
    """The patches of one image of any size, and their number in height and width.

    The graph is traced with height and width as two axes, so that both are known.

    Attributes:
        before, after: sizes of the axes before and after that of the patches.
        width: number of elements of a patch along that axis.
        size: name of the input with the sizes.
        unit: patches in a unit of height and width.
    """

    before: tuple[int, ...]
    width: int
    after: tuple[int, ...]
    size: str
    unit: int

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        return {PIXELS: {len(self.before): "patches"}, self.size: {}}

    @property
    def _rest(self) -> tuple[int, ...]:
        return () if self.width == 1 else (self.width,)

    def make(self, images: int, sides: tuple[int, int]) -> dict[str, Tensor]:
        height, width = (side * self.unit for side in sides)
        pixels = torch.zeros(*self.before, height * width * self.width, *self.after)
        sizes = [1, height, width] if self.size == GRID else [height, width]
        return {PIXELS: pixels, self.size: torch.tensor([sizes])}

    def tensors(self, dtype: torch.dtype) -> tuple[GraphInput, ...]:
        pixels, sizes = super().tensors(dtype)
        axis, height = len(self.before), _TRACED[0] * self.unit
        sides = (height, -1, *self._rest)
        example = pixels.example.reshape(*self.before, *sides, *self.after)
        return GraphInput(PIXELS, example, {axis: "height", axis + 1: "width"}), sizes

    def finish(self, model: ir.Model) -> None:
        """Reshape patches in a sequence to height and width."""
        graph = model.graph
        traced, sizes = graph.inputs[:2]
        shape = ir.Shape([*self.before, "patches", *self.after])
        pixels = ir.Value(name=PIXELS, type=traced.type, shape=shape)
        tape = ir.tape.Tape()
        parts = [
            tape.op("Constant", [], {"value_ints": self.before}) if self.before else None,
            tape.op("Gather", [sizes, _number(tape, -2)], {"axis": 1}),
            tape.op("Constant", [], {"value_ints": [-1, *self._rest, *self.after]}),
        ]
        sides = tape.op("Concat", [part for part in parts if part is not None], {"axis": 0})
        output = tape.op("Reshape", [pixels, sides])
        output.type, output.shape = traced.type, traced.shape
        traced.replace_all_uses_with(output)
        graph.inputs[0] = pixels
        traced.name = f"{PIXELS}.height_width"
        output.name = traced.name
        graph.insert_before(graph[0], tape.nodes)

    @contextlib.contextmanager
    def traced(
        self, module: nn.Module, inputs: Mapping[str, Tensor]
    ) -> Iterator[Mapping[str, Tensor]]:
        pixels, sizes = inputs[PIXELS], inputs[self.size]
        axis = len(self.before)
        height, width = pixels.shape[axis : axis + 2]
        flat = pixels.flatten(axis, axis + 1 + len(self._rest))
        known = KnownSizes()
        known.attach(sizes, [[1, height, width] if self.size == GRID else [height, width]])
        with single_image(module, height * width), known:
            yield {PIXELS: flat, self.size: sizes}


@dataclass(frozen=True)
class Pixels(ImageInputs):
    """The pixels of one image of any size ``(1, channels, height, width)``.

    Attributes:
        channels: number of channels.
        unit: pixels in a unit of height and width.
    """

    channels: int
    unit: int

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        return {PIXELS: {2: "height", 3: "width"}}

    def make(self, images: int, sides: tuple[int, int]) -> dict[str, Tensor]:
        height, width = (side * self.unit for side in sides)
        pixels = torch.zeros(1, self.channels, height, width)
        return {PIXELS: pixels, PIXEL_SIZES: torch.tensor([[height, width]])}

    @contextlib.contextmanager
    def traced(
        self, module: nn.Module, inputs: Mapping[str, Tensor]
    ) -> Iterator[Mapping[str, Tensor]]:
        height, width = inputs[PIXELS].shape[2:]
        known = KnownSizes()
        sizes = torch.stack([torch.full((), height), torch.full((), width)])[None]
        known.attach(sizes, [[height, width]])
        with single_image(module, height * width), known:
            yield {**inputs, PIXEL_SIZES: sizes}


@dataclass(frozen=True)
class PaddedPatches(ImageInputs):
    """The patches of one image of any size and padding, with positions, or a mask and the size.

    Attributes:
        count: of the elements of a patch.
        size: name of the input with the positions or the size.
        unit: patches in a unit of height and width.
    """

    count: int
    size: str
    unit: int

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        patches = {1: "patches"}
        if self.size == POSITIONS:
            return {PIXELS: patches, POSITIONS: patches}
        return {PIXELS: patches, self.size: {}, PATCH_MASK: patches}

    def make(self, images: int, sides: tuple[int, int]) -> dict[str, Tensor]:
        height, width = (side * self.unit for side in sides)
        feeds = {PIXELS: torch.zeros(1, height * width, self.count)}
        if self.size == POSITIONS:
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            return feeds | {POSITIONS: torch.stack([columns, rows], -1).flatten(0, 1)[None]}
        mask = torch.ones(1, height * width, dtype=torch.int32)
        return feeds | {self.size: torch.tensor([[height, width]]), PATCH_MASK: mask}

    @contextlib.contextmanager
    def traced(
        self, module: nn.Module, inputs: Mapping[str, Tensor]
    ) -> Iterator[Mapping[str, Tensor]]:
        with single_image(module, inputs[PIXELS].shape[1]):
            yield inputs


def _number(tape: ir.tape.Tape, value: int) -> ir.Value:
    return tape.op("Constant", [], {"value_int": value})
