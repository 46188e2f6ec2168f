"""The values a weight can take once it is rounded.

Each row of a matrix ``(N, K)``, an output channel or a token, is cut into blocks that share a
scale, or is one block. A code is ``round(value / scale) + zero point``. Row v of a token table is
output channel v of the head, so one set of scales serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetie.errors import QuantizeError
from edgetie.targets import BLOCK_SIZES

Array = np.ndarray[Any, Any]

_SHRINK = np.linspace(1.0, 0.7, 7, dtype=np.float32)[1:]  # of the range, tried by clipping


def choose_block(columns: int, largest: int = 64) -> int:
    """The block (16, 32 or 64, at most ``largest``) that pads a row of ``columns`` the least.

    Larger blocks save a hundredth of the file and cost a tenth of the accuracy.
    """
    sizes = [size for size in BLOCK_SIZES if size <= largest]
    return max(sizes, key=lambda size: (-(-columns // size) * -size, size))


@dataclass(frozen=True)
class AffineParameters:
    """Scales of some blocks and, where they are not symmetric, zero points.

    Attributes:
        scale: float32.
        zero: of the same shape, whole numbers from 0 to ``2**bits - 1``.
    """

    scale: Array
    zero: Array | float


@dataclass(frozen=True)
class QuantSpec:
    """How a matrix is rounded.

    Attributes:
        bits: of a code.
        block: columns that share a scale; ``None`` for whole rows.
        asymmetric: each block has a zero point of its own: its smallest and largest value are the
            ends of the grid. Otherwise zero is in the middle and the largest magnitude the end.
        clip: the ends are drawn in as far as the squared error falls (as OCTAV, Sakr et al. 2022,
            by trying). Of use with few bits.
    """

    bits: int = 8
    block: int | None = None
    asymmetric: bool = False
    clip: bool = False

    @property
    def middle(self) -> int:
        """The code of zero on a symmetric grid."""
        return 1 << (self.bits - 1)

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        return (0 if self.asymmetric else 1), (1 << self.bits) - 1

    def count(self, columns: int) -> int:
        """Blocks of a row."""
        return 1 if self.block is None else -(-columns // self.block)

    def fit(self, values: Array, axis: int) -> AffineParameters:
        """Scales and zero points of blocks that lie along ``axis`` of ``values``, which is gone
        from them.
        """
        low, high = values.min(axis=axis), values.max(axis=axis)
        steps = self._steps(low, high)
        if not self.clip:
            return steps
        best = self._error(values, steps, axis)
        for factor in _SHRINK:
            tried = self._steps(low * factor, high * factor)
            error = self._error(values, tried, axis)
            better = error < best
            best = np.where(better, error, best)
            scale = np.where(better, tried.scale, steps.scale)
            zero = np.where(better, tried.zero, steps.zero) if self.asymmetric else steps.zero
            steps = AffineParameters(scale, zero)
        return steps

    def _steps(self, low: Array, high: Array) -> AffineParameters:
        least, most = self.codes
        if not self.asymmetric:
            scale = np.maximum(high, -low) / np.float32(most - self.middle)
            return AffineParameters(np.where(scale > 0, scale, np.float32(1)), float(self.middle))
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scale = (high - low) / np.float32(most - least)
        scale = np.where(scale > 0, scale, np.float32(1))
        return AffineParameters(scale, np.rint(-low / scale))

    def _error(self, values: Array, steps: AffineParameters, axis: int) -> Array:
        scale, zero = np.expand_dims(steps.scale, axis), steps.zero
        zero = np.expand_dims(zero, axis) if isinstance(zero, np.ndarray) else zero
        codes = np.clip(np.rint(values / scale + zero), *self.codes)
        return np.asarray(np.square((codes - zero) * scale - values).sum(axis=axis))


@dataclass(frozen=True)
class QuantizedValues:
    """A rounded matrix ``(N, K)``.

    Attributes:
        codes: uint8 ``(N, columns)``, columns being K filled up to whole blocks with zeros.
        scales: float32 ``(N, blocks)``.
        zeros: uint8 ``(N, blocks)``; ``None`` where all are the middle of the grid.
    """

    codes: Array
    scales: Array
    zeros: Array | None = None


def require_finite(rows: Array, name: str) -> None:
    """Refuse a matrix ``(N, K)`` with a value that has no code.

    Raises:
        QuantizeError: if it holds NaN or infinity, naming it and the row.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(rows.sum(dtype=np.float64)):  # either of them makes the sum so
            return
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise QuantizeError(f"{name}: NaN or infinity in row {row}; it cannot be quantized")


def round_to_nearest(rows: Array, spec: QuantSpec) -> QuantizedValues:
    """Round a float matrix ``(N, K)``, each value for itself."""
    n, k = rows.shape
    count = spec.count(k)
    width = spec.block or k
    codes = np.empty((n, count * width), np.uint8)
    scales = np.empty((n, count), np.float32)
    zeros = np.empty((n, count), np.uint8) if spec.asymmetric else None
    step = max(1, (1 << 22) // max(1, count * width))  # rows at a time: some 16 MB of scratch
    for start in range(0, n, step):
        part = np.asarray(rows[start : start + step], np.float32)
        if k < count * width:
            part = np.pad(part, [(0, 0), (0, count * width - k)])
        blocks = part.reshape(len(part), count, width)
        steps = spec.fit(blocks, axis=2)
        zero = steps.zero[..., None] if isinstance(steps.zero, np.ndarray) else steps.zero
        found = np.rint(blocks / steps.scale[..., None] + zero)
        codes[start : start + step] = np.clip(found, *spec.codes).reshape(len(part), -1)
        scales[start : start + step] = steps.scale
        if zeros is not None:
            zeros[start : start + step] = steps.zero
    return QuantizedValues(codes, scales, zeros)
