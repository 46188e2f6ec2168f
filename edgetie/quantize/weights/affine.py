"""Affine quantization of a weight: scales, zero points and rounding to nearest.

Each output channel of a weight ``(N, K)`` is divided into blocks that share a scale, or is one
block. A quantized value is ``round(value / scale) + zero point``. Row v of an embedding is output
channel v of a tied head, so both have the same scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetie.errors import QuantizeError
from edgetie.targets import BLOCK_SIZES

Array = np.ndarray[Any, Any]

_SHRINK_FACTORS = np.linspace(1.0, 0.7, 7, dtype=np.float32)[1:]
_SCRATCH_ELEMENTS = 1 << 22  # some 16 MB of float32


def choose_block(in_channels: int, largest: int = 64) -> int:
    """Choose the block size (16, 32 or 64, at most ``largest``) that pads an output channel least.

    Larger blocks save a hundredth of the file and cost a tenth of the accuracy.
    """
    sizes = [size for size in BLOCK_SIZES if size <= largest]
    return max(sizes, key=lambda size: (-(-in_channels // size) * -size, size))


@dataclass(frozen=True)
class AffineParameters:
    """Scales and zero points of blocks.

    Attributes:
        scale: float32.
        zero_point: of the same shape, integers from 0 to ``2**bits - 1``; one number if symmetric.
    """

    scale: Array
    zero_point: Array | float

    def expanded(self, axis: int) -> tuple[Array, Array | float]:
        """Return scale and zero point with ``axis`` inserted, to broadcast along it."""
        zero_point = self.zero_point
        if isinstance(zero_point, np.ndarray):
            zero_point = np.expand_dims(zero_point, axis)
        return np.expand_dims(self.scale, axis), zero_point


@dataclass(frozen=True)
class QuantSpec:
    """How a weight is quantized.

    Attributes:
        bits: of a quantized value.
        block: input channels that share a scale; ``None`` for all of an output channel.
        asymmetric: each block has a zero point, and its quantized values span its smallest and
            largest value. Otherwise the zero point is the midpoint.
        clip: shrink the range as far as the squared error falls (as OCTAV, Sakr et al. 2022, but by
            trying). Useful with few bits.
    """

    bits: int = 8
    block: int | None = None
    asymmetric: bool = False
    clip: bool = False

    @property
    def midpoint(self) -> int:
        """The zero point of symmetric quantization."""
        return 1 << (self.bits - 1)

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest quantized value."""
        return (0 if self.asymmetric else 1), (1 << self.bits) - 1

    def block_count(self, in_channels: int) -> int:
        """Return the number of blocks of an output channel."""
        return 1 if self.block is None else -(-in_channels // self.block)

    def fit(self, values: Array, axis: int) -> AffineParameters:
        """Compute scales and zero points of blocks along ``axis``, which they do not have."""
        low, high = values.min(axis=axis), values.max(axis=axis)
        best = self._parameters(low, high)
        if not self.clip:
            return best
        best_error = self._squared_error(values, best, axis)
        for factor in _SHRINK_FACTORS:
            candidate = self._parameters(low * factor, high * factor)
            error = self._squared_error(values, candidate, axis)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            scale = np.where(better, candidate.scale, best.scale)
            zero_point = best.zero_point
            if self.asymmetric:
                zero_point = np.where(better, candidate.zero_point, zero_point)
            best = AffineParameters(scale, zero_point)
        return best

    def _parameters(self, low: Array, high: Array) -> AffineParameters:
        smallest, largest = self.limits
        if self.asymmetric:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            scale = (high - low) / np.float32(largest - smallest)
        else:
            scale = np.maximum(high, -low) / np.float32(largest - self.midpoint)
        scale = np.where(scale > 0, scale, np.float32(1))
        zero_point = np.rint(-low / scale) if self.asymmetric else float(self.midpoint)
        return AffineParameters(scale, zero_point)

    def _squared_error(self, values: Array, parameters: AffineParameters, axis: int) -> Array:
        scale, zero_point = parameters.expanded(axis)
        quantized = np.clip(np.rint(values / scale + zero_point), *self.limits)
        return np.asarray(np.square((quantized - zero_point) * scale - values).sum(axis=axis))


@dataclass(frozen=True)
class QuantizedValues:
    """A quantized weight ``(N, K)``.

    Attributes:
        values: uint8 ``(N, padded K)``, padded with the zero point to whole blocks.
        scales: float32 ``(N, blocks)``.
        zero_points: uint8 ``(N, blocks)``; ``None`` if symmetric.
    """

    values: Array
    scales: Array
    zero_points: Array | None = None


def require_finite(weight: Array, name: str) -> None:
    """Refuse a weight ``(N, K)`` that contains NaN or infinity.

    Raises:
        QuantizeError: naming the weight and the output channel.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(weight.sum(dtype=np.float64)):  # either of them makes the sum so
            return
    finite = np.isfinite(weight).all(axis=1)
    if not finite.all():
        channel = int(np.argmin(finite))
        raise QuantizeError(
            f"{name}: NaN or infinity in output channel {channel}; it cannot be quantized"
        )


def round_to_nearest(weight: Array, spec: QuantSpec) -> QuantizedValues:
    """Quantize a float weight ``(N, K)``, each value on its own."""
    n, k = weight.shape
    count, block = spec.block_count(k), spec.block or k
    padded = count * block
    values = np.empty((n, padded), np.uint8)
    scales = np.empty((n, count), np.float32)
    zero_points = np.empty((n, count), np.uint8) if spec.asymmetric else None
    step = max(1, _SCRATCH_ELEMENTS // max(1, padded))
    for start in range(0, n, step):
        part = slice(start, start + step)
        channels = np.asarray(weight[part], np.float32)
        if k < padded:
            channels = np.pad(channels, [(0, 0), (0, padded - k)])
        blocks = channels.reshape(len(channels), count, block)
        parameters = spec.fit(blocks, axis=2)
        scale, zero_point = parameters.expanded(2)
        quantized = np.clip(np.rint(blocks / scale + zero_point), *spec.limits)
        values[part] = quantized.reshape(len(channels), -1)
        scales[part] = parameters.scale
        if zero_points is not None:
            zero_points[part] = parameters.zero_point
    return QuantizedValues(values, scales, zero_points)
