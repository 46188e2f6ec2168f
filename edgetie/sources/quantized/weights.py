"""Quantized weights as the methods of other libraries store them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgetie.sources.quantized.tensor import Array, QuantizedTensor

_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 128  # what kernels read


class StoredWeight(Protocol):
    """A weight ``(N, K)`` of a checkpoint."""

    @property
    def type(self) -> str:
        """The name of its type, for messages."""

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be stored in blocks without a change of values; ``None`` if it can."""

    def dequantize(self) -> Array:
        """Compute the weight in float32."""


@dataclass(frozen=True)
class GroupedWeight:
    """A weight ``(N, K)`` of integers: ``(value - zero point) * scale``, plus the offset, if any.

    A library may round these values to 16 bits when it computes with them. Here they are those of
    float32: a weight is kept if its integers, scales and zero points are the same.

    Attributes:
        type: of the weight, for messages.
        bits: of a value, from 2 to 8.
        values: uint8 ``(N, K)``.
        scales: float32 ``(N, G)``.
        zero_points: uint8 ``(N, G)``.
        groups: the group of each column, ``(K,)``.
        offsets: float32 ``(N, G)``, or ``None``.
    """

    type: str
    bits: int
    values: Array
    scales: Array
    zero_points: Array
    groups: Array
    offsets: Array | None = None

    @property
    def obstacle(self) -> str | None:
        if self._block >= _SMALLEST_BLOCK:
            return None
        if len(self._starts) >= self.scales.shape[1]:
            return "columns of a group are not neighbours, as with desc_act"
        return f"its groups of columns do not divide into blocks of {_SMALLEST_BLOCK}"

    @property
    def _starts(self) -> Array:
        """The columns at which another group begins."""
        return np.flatnonzero(np.diff(self.groups)) + 1

    @property
    def _block(self) -> int:
        """The largest block of columns that all have the same group."""
        size = math.gcd(len(self.groups), *self._starts.tolist())
        return min(size & -size, _LARGEST_BLOCK)

    def dequantize(self) -> Array:
        weight = self.values.astype(np.float32)
        weight -= self.zero_points[:, self.groups]
        weight *= self.scales[:, self.groups]
        if self.offsets is not None:
            weight += self.offsets[:, self.groups]
        return weight

    def in_blocks(self) -> QuantizedTensor:
        """Return it in blocks, if there is no obstacle."""
        groups, offsets = self.groups[:: self._block], self.offsets
        return QuantizedTensor(
            4 if self.bits <= 4 else 8,
            self._block,
            np.ascontiguousarray(self.values),
            self.scales[:, groups],
            self.zero_points[:, groups],
            None if offsets is None else offsets[:, groups],
            self.type,
        )


@dataclass(frozen=True)
class FloatWeight:
    """A weight whose values are not evenly spaced, so that no integers stand for them.

    Attributes:
        type: of the weight, for messages.
        values: float32 ``(N, K)``.
    """

    type: str
    values: Array

    @property
    def obstacle(self) -> str | None:
        return "its values are not evenly spaced"

    def dequantize(self) -> Array:
        return self.values


def even_groups(columns: int, count: int) -> Array:
    """Return the group of each of ``columns`` columns, in ``count`` groups of one size."""
    return np.arange(columns) // -(-columns // count)


def unsigned(values: Array, bits: int = 8) -> Array:
    """Shift signed integers of some bits to unsigned ones, uint8."""
    return (values.astype(np.int16) + (1 << bits >> 1)).astype(np.uint8)


def repeat_rows(parameters: Array, rows: int) -> Array:
    """Repeat what several rows of a weight have in common for each of them, ``(rows, groups)``.

    Args:
        parameters: ``(parts of the rows, groups)``, or of one group, or one number.
        rows: of the weight.
    """
    parameters = parameters.reshape(-1, parameters.shape[-1] if parameters.ndim > 1 else 1)
    return parameters[np.arange(rows) // -(-rows // len(parameters))]


def scale_blocks(values: Array, scales: Array, block: Sequence[int]) -> Array:
    """Multiply blocks of values ``(N, K)`` by their scales; the last ones may be smaller."""
    rows, columns = (np.arange(n) // size for n, size in zip(values.shape, block, strict=True))
    return np.asarray(values * scales[rows[:, None], columns])
