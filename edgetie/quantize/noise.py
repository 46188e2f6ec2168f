"""An estimate of the error that rounding adds to a product, from a few rows of its operands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetie.quantize.grid import Grid
from edgetie.quantize.matrices import Span

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sample:
    """Some rows of a product's activations ``(tokens, K)`` and of its matrix ``(N, K)``."""

    x: Array
    rows: Array


def noise(sample: Sample, grid: Grid, activations: Span) -> float:
    """Energy of the error in the output, up to a factor, both operands rounded.

    A step is proportional to the largest value that shares it and the error is uniform within the
    step, so it grows with the square of that value, and with the energy of what it is multiplied
    by.
    """
    x, rows = sample.x, sample.rows
    block = grid.block or x.shape[1]
    # steps of a weight that are wider than an activation's of 8 bits by so much
    coarser = (255 / ((1 << grid.bits) - 1)) ** 2
    of_rows = coarser * (_peaks(rows, block) ** 2).sum(axis=0) @ _sums(_energy(x), block)
    if activations is Span.NONE:
        return float(of_rows)
    if activations is Span.BLOCK:
        of_each = (_peaks(x, block) ** 2).mean(axis=0)
    else:
        peaks = np.abs(x).max(axis=1 if activations is Span.TOKEN else None)
        of_each = np.full(-(-x.shape[1] // block), np.square(peaks).mean())
    of_x = of_each @ _sums(np.square(rows).sum(axis=0), block)
    return float(of_x + of_rows)


def _energy(x: Array) -> Array:
    """Mean square of each channel."""
    return np.asarray(np.square(x).mean(axis=0))


def _blocks(array: Array, block: int) -> Array:
    extra = -array.shape[-1] % block
    padded = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, extra)]) if extra else array
    return padded.reshape(*array.shape[:-1], -1, block)


def _peaks(rows: Array, block: int) -> Array:
    return np.asarray(np.abs(_blocks(rows, block)).max(axis=-1))


def _sums(energy: Array, block: int) -> Array:
    return np.asarray(_blocks(energy, block).sum(axis=-1))
