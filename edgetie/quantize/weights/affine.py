"""Affine quantization of a weight: scales, zero points and rounding to nearest.

A quantized value is ``round(value / scale) + zero point``; blocks of an output channel of a weight
``(N, K)``, or all of it, share a scale.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetie.errors import QuantizeError
from edgetie.targets import BLOCK_SIZES

Array = np.ndarray[Any, Any]

_SHRINK_FACTORS = np.linspace(1.0, 0.7, 7, dtype=np.float32)
_SCRATCH_ELEMENTS = 1 << 22  # some 16 MB of float32


def choose_block(in_channels: int, largest: int = 64) -> int:
    """Choose the block size (16, 32 or 64, at most ``largest``) that pads an output channel least.

    Larger blocks save a hundredth of the file and cost a tenth of the accuracy.
    """
    sizes = [size for size in BLOCK_SIZES if size <= largest]
    return max(sizes, key=lambda size: (-(-in_channels // size) * -size, size))


@dataclass(frozen=True)
class QuantSpec:
    """How a weight is quantized.

    Attributes:
        bits: of a quantized value.
        block: input channels that share a scale; ``None`` for all of an output channel.
        asymmetric: each block has a zero point, otherwise the midpoint.
        clip: shrink the range as far as the squared error falls (as OCTAV, Sakr et al. 2022).
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

    def quantize(self, values: Array, scale: Array, zero_point: Array) -> Array:
        """Round values to the nearest quantized ones, as floats."""
        return np.asarray(np.clip(np.rint(values / scale + zero_point), *self.limits))

    def fit(self, values: Array, axis: int) -> tuple[Array, Array]:
        """Compute scales and zero points of blocks along ``axis``, which has one entry then."""
        low, high = values.min(axis=axis, keepdims=True), values.max(axis=axis, keepdims=True)
        best, best_error = self._parameters(low, high), np.full_like(low, np.inf)
        for factor in _SHRINK_FACTORS if self.clip else ():
            scale, zero_point = candidate = self._parameters(low * factor, high * factor)
            restored = (self.quantize(values, *candidate) - zero_point) * scale
            error = np.square(restored - values).sum(axis=axis, keepdims=True)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best = np.where(better, scale, best[0]), np.where(better, zero_point, best[1])
        return best

    def _parameters(self, low: Array, high: Array) -> tuple[Array, Array]:
        smallest, largest = self.limits
        if self.asymmetric:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            scale = (high - low) / np.float32(largest - smallest)
        else:
            scale = np.maximum(high, -low) / np.float32(largest - self.midpoint)
        scale = np.where(scale > 0, scale, np.float32(1))
        zero_point = (
            np.rint(-low / scale) if self.asymmetric else np.full_like(scale, self.midpoint)
        )
        return scale, zero_point


@dataclass(frozen=True)
class QuantizedValues:
    """A quantized weight ``(N, K)``.

    Attributes:
        values: uint8 ``(N, padded K)``, padded with the zero point to whole blocks.
        scales: float32 ``(N, blocks)``.
        zero_points: uint8 ``(N, blocks)``.
        offsets: float32 ``(N, blocks)``, added to ``(value - zero point) * scale``; ``None`` for 0.
    """

    values: Array
    scales: Array
    zero_points: Array
    offsets: Array | None = None


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
    zero_points = np.empty((n, count), np.uint8)
    step = max(1, _SCRATCH_ELEMENTS // max(1, padded))
    for start in range(0, n, step):
        part = slice(start, start + step)
        channels = np.asarray(weight[part], np.float32)
        if k < padded:
            channels = np.pad(channels, [(0, 0), (0, padded - k)])
        blocks = channels.reshape(len(channels), count, block)
        scale, zero_point = spec.fit(blocks, axis=2)
        values[part] = spec.quantize(blocks, scale, zero_point).reshape(len(channels), -1)
        scales[part], zero_points[part] = scale[..., 0], zero_point[..., 0]
    return QuantizedValues(values, scales, zero_points)
