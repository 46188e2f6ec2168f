"""A weight as a quantized checkpoint stores it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgetie.ties.groups import JOINT, is_named

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight ``(N, K)``: ``(value - zero point) * scale``, plus an offset if there are offsets.

    Blocks of ``block`` consecutive columns of a row share scale, zero point and offset.

    Attributes:
        bits: of a value, 4 or 8.
        block: columns that share a scale, a power of two from 16 on.
        values: uint8 ``(N, K)``, one value in a byte.
        scales: float32 ``(N, K / block)``.
        zero_points: uint8 ``(N, K / block)``.
        offsets: float32 ``(N, K / block)``, or ``None``.
        type: the name of the type in the checkpoint, for messages.
    """

    bits: int
    block: int
    values: Array
    scales: Array
    zero_points: Array
    offsets: Array | None
    type: str

    @property
    def form(self) -> tuple[int, int, bool]:
        """What weights must have in common to be rows of one weight."""
        return self.bits, self.block, self.offsets is not None

    def dequantize(self) -> Array:
        """Compute the weight ``(N, K)`` in float32."""
        rows, blocks = self.scales.shape
        values = self.values.reshape(rows, blocks, self.block).astype(np.float32)
        values -= self.zero_points[..., None]
        values *= self.scales[..., None]
        if self.offsets is not None:
            values += self.offsets[..., None]
        return values.reshape(rows, -1)

    def center(self) -> "QuantizedTensor":
        """Move half of the range of values from offsets to zero points, if no value changes by it.

        Rounding activations then costs half as much in products, where offsets are exact.
        """
        if self.offsets is None:
            return self
        middle = 1 << (self.bits - 1)
        centered = replace(
            self,
            zero_points=np.full_like(self.zero_points, middle),
            offsets=self.offsets + np.float32(middle) * self.scales,
        )
        is_equal = np.array_equal(centered.dequantize(), self.dequantize())
        return centered if is_equal else self

    def select_rows(self, rows: Array) -> "QuantizedTensor":
        """Return the weight of these rows."""
        return replace(
            self,
            values=self.values[rows],
            scales=self.scales[rows],
            zero_points=self.zero_points[rows],
            offsets=None if self.offsets is None else self.offsets[rows],
        )


def find_quantized(name: str, tensors: Mapping[str, QuantizedTensor]) -> QuantizedTensor | None:
    """Return what an initializer holds that is made of quantized tensors; ``None`` for others.

    Args:
        name: of the initializer, perhaps of several weights.
        tensors: by the names of parameters.
    """
    parts = name.split(JOINT)
    known = [
        tensor
        for part in parts
        if (tensor := next((t for n, t in tensors.items() if is_named(part, (n,))), None))
    ]
    if len(known) < len(parts) or len({tensor.form for tensor in known}) != 1:
        return None
    return known[0] if len(known) == 1 else _concatenate(known)


def _concatenate(tensors: list[QuantizedTensor]) -> QuantizedTensor:
    """Join weights of one form, the rows of one after those of the other."""

    def join(name: str) -> Array:
        return np.concatenate([getattr(tensor, name) for tensor in tensors])

    return replace(
        tensors[0],
        values=join("values"),
        scales=join("scales"),
        zero_points=join("zero_points"),
        offsets=None if tensors[0].offsets is None else join("offsets"),
    )
