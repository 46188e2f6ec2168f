"""An estimate of the error that rounding adds to a product, from a few rows of its operands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sample:
    """Some rows of a product's activations ``(tokens, K)`` and of its matrix ``(N, K)``."""

    x: Array
    rows: Array


def noise(sample: Sample, block: int) -> float:
    """Energy of the error in the output, up to a factor, both operands rounded by blocks.

    The step of a block is its largest value over 127 and the error is uniform within it, so it
    grows with the square of that value, and with the energy of what it is multiplied by.
    """
    x, rows = sample.x, sample.rows
    of_x = (_peaks(x, block) ** 2).mean(axis=0) @ _sums(np.square(rows).sum(axis=0), block)
    of_rows = (_peaks(rows, block) ** 2).sum(axis=0) @ _sums(np.square(x).mean(axis=0), block)
    return float(of_x + of_rows)


def _blocks(array: Array, block: int) -> Array:
    extra = -array.shape[-1] % block
    padded = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, extra)]) if extra else array
    return padded.reshape(*array.shape[:-1], -1, block)


def _peaks(rows: Array, block: int) -> Array:
    return np.asarray(np.abs(_blocks(rows, block)).max(axis=-1))


def _sums(energy: Array, block: int) -> Array:
    return np.asarray(_blocks(energy, block).sum(axis=-1))
