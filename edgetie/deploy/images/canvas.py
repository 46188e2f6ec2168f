"""The pixels of an image in a graph: resize them as Pillow does, crop, pad and normalize them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgetie.deploy.images.arithmetic import Number, Term, concatenate, integers_below
from edgetie.errors import BundleError
from edgetie.graph.nodes import Nodes
from edgetie.runtime.images.processing.settings import ImageSettings

_ROWS, _COLUMNS = 1, 2  # axes
_LEAST = 1e-9  # distance between pixels
Size = tuple[Term, Term]


@dataclass(frozen=True)
class Canvas:
    """An image that a graph has, at some step of its way to the encoder.

    Attributes:
        nodes: of the graph.
        pixels: ``(3, height, width)``, float32, from 0 to 255 until they are normalized.
        height, width: of the image.
    """

    nodes: Nodes
    pixels: ir.Value
    height: Number
    width: Number

    @property
    def shorter(self) -> Number:
        return self.height.minimum(self.width)

    @property
    def longer(self) -> Number:
        return self.height.maximum(self.width)

    def resize(self, size: Size, settings: ImageSettings) -> Canvas:
        """Resize with the filter in the settings.

        Pillow resizes the width, then the height, and rounds after each to whole levels. Both are
        products with matrices of the filter's weights. Since version 13 it resizes some images in
        the other order, which differs at sharp edges. ONNX's own Resize with ``antialias`` differs
        by up to 20 of 256 levels.
        """
        function = _filter(settings)
        height, width = self._numbers(size)
        columns = self.nodes.transpose(_weights(width, self.width, function))
        pixels = self._to_levels(self.nodes("MatMul", self.pixels, columns))
        rows = _weights(height, self.height, function)
        pixels = self._to_levels(self.nodes("MatMul", rows, pixels))
        return Canvas(self.nodes, pixels, height, width)

    def crop(self, size: Size) -> Canvas:
        """Cut out the middle; a smaller image gets a black border."""
        height, width = self._numbers(size)
        canvas = self
        for axis, (length, wanted) in enumerate(
            ((self.height, height), (self.width, width)), start=_ROWS
        ):
            missing = (wanted - length).maximum(0)
            after = missing // 2
            canvas = canvas._pad_axis(axis, missing - after, after)
            start = (length - wanted).maximum(0) // 2
            canvas = canvas._slice(axis, start, wanted)
        return replace(canvas, height=height, width=width)

    def place(self, size: Size, colour: Sequence[int] = (0, 0, 0)) -> Canvas:
        """Put the image in the middle of a larger one of a colour."""
        height, width = self._numbers(size)
        canvas = self
        for axis, (length, wanted) in enumerate(
            ((self.height, height), (self.width, width)), start=_ROWS
        ):
            before = (wanted - length) // 2
            canvas = canvas._pad_axis(axis, before, wanted - length - before, colour)
        return replace(canvas, height=height, width=width)

    def extend(self, size: Size) -> Canvas:
        """Add zeros at the bottom and on the right up to a size."""
        height, width = self._numbers(size)
        nothing = self._numbers((0, 0))[0]
        canvas = self._pad_axis(_ROWS, nothing, height - self.height)
        canvas = canvas._pad_axis(_COLUMNS, nothing, width - self.width)
        return replace(canvas, height=height, width=width)

    def normalize(self, settings: ImageSettings) -> Canvas:
        """Rescale and normalize as the settings say."""
        pixels = self.pixels
        if settings.flag("do_rescale"):
            factor = self.nodes.number(settings.number("rescale_factor"), ir.DataType.FLOAT)
            pixels = self.nodes("Mul", pixels, factor)
        if settings.flag("do_normalize"):
            shape = (3, 1, 1)
            mean = settings.channels("image_mean").reshape(shape)
            deviation = settings.channels("image_std").reshape(shape)
            pixels = self.nodes("Sub", pixels, self.nodes.constant("mean", mean, np.float32))
            pixels = self.nodes("Div", pixels, self.nodes.constant("std", deviation, np.float32))
        return replace(self, pixels=pixels)

    def _numbers(self, size: Size) -> tuple[Number, Number]:
        height, width = (
            each
            if isinstance(each, Number)
            else Number(self.nodes, self.nodes.integers(f"scalar.{each}", each))
            for each in size
        )
        return height, width

    def _to_levels(self, pixels: ir.Value) -> ir.Value:
        numbers = [self.nodes.number(each, ir.DataType.FLOAT) for each in (0.5, 0.0, 255.0)]
        whole = self.nodes("Floor", self.nodes("Add", pixels, numbers[0]))
        return self.nodes("Clip", whole, *numbers[1:])

    def _pad_axis(
        self, axis: int, before: Number, after: Number, colour: Sequence[int] = (0, 0, 0)
    ) -> Canvas:
        """Pad an axis of all channels, or of each if their values differ."""
        axes = self.nodes.integers(f"axes.{axis}", [axis])
        pads = concatenate(self.nodes, before, after)
        if len({*colour}) == 1:
            parts, colour = [self.pixels], colour[:1]
        else:
            parts = [*self.nodes.op_multi_out(
                "Split", [self.pixels], {"axis": 0, "num_outputs": 3}, num_outputs=3
            )]  # fmt: skip
        padded = [
            self.nodes("Pad", part, pads, self.nodes.number(value, ir.DataType.FLOAT), axes)
            for part, value in zip(parts, colour, strict=True)
        ]
        joined = padded[0] if len(padded) == 1 else self.nodes("Concat", *padded, axis=0)
        return replace(self, pixels=joined)

    def _slice(self, axis: int, start: Number, length: Number) -> Canvas:
        axes = self.nodes.integers(f"axes.{axis}", [axis])
        ends = (concatenate(self.nodes, each) for each in (start, start + length))
        return replace(self, pixels=self.nodes("Slice", self.pixels, *ends, axes))


def _filter(settings: ImageSettings) -> Callable[[Number], Number]:
    """Return the function that the setting ``resample`` numbers."""
    number = settings.resample()
    if number not in _FILTERS:
        raise BundleError(
            f"{settings.path}: resample is {number}, a filter that starters do not have; they have "
            f"{', '.join(map(str, _FILTERS))}; run the model with edgetie generate"
        )
    return _FILTERS[number]


def _lanczos(distance: Number) -> Number:
    x = distance.map("Abs").maximum(_LEAST)  # its limit at 0
    return _sinc(x) * _sinc(x / 3) * (x < 3.0).real()


def _sinc(x: Number) -> Number:
    angle = x * math.pi
    return angle.map("Sin") / angle


def _bilinear(distance: Number) -> Number:
    return (distance.map("Abs") * -1.0 + 1.0).maximum(0.0)


def _bicubic(distance: Number) -> Number:
    x = distance.map("Abs")
    near = (x * 1.5 - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    is_near = (x < 1.0).real()
    return near * is_near + far * ((x < 2.0).real() - is_near)


_FILTERS = {1: _lanczos, 2: _bilinear, 3: _bicubic}
"""By Pillow's number; each is 0 for distances beyond its support."""


def _weights(new: Number, old: Number, function: Callable[[Number], Number]) -> ir.Value:
    """Compute the weights ``(new, old)`` of old pixels in new ones, as Pillow does."""
    scale = old / new
    centers = (integers_below(new) + 0.5) * scale
    distances = (integers_below(old) + 0.5).along(0) - centers.along(1)
    weights = function(distances / scale.maximum(1.0))
    sums = Number(new.nodes, new.nodes.along("ReduceSum", weights.value, 1))
    return new.nodes.cast((weights / sums).value, ir.DataType.FLOAT)
