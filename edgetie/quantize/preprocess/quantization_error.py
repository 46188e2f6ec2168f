"""Estimates of the error that rounding adds to a product, from a few rows of its operands.

A step is proportional to the largest value that shares it and the error is uniform within the step,
so the energy of the error grows with the square of that value, and with the energy of what it is
multiplied by.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetie.quantize.formats.weight_format import ScaleGranularity
from edgetie.quantize.weights.affine import QuantSpec

Array = np.ndarray[Any, Any]

_STEPS = 127  # of the largest activation


def weight_error(x: Array, rows: Array, spec: QuantSpec) -> float:
    """From rounding the matrix ``(N, K)`` that ``x`` ``(tokens, K)`` is multiplied by, in the
    output of an average token.
    """
    block = spec.block or x.shape[1]
    steps = 2 * _peaks(rows, block) / ((1 << spec.bits) - 1)
    return float((steps**2).sum(axis=0) @ _sums(np.square(x).mean(axis=0), block)) / 12


def activation_error(x: Array, rows: Array, spec: QuantSpec, span: ScaleGranularity) -> Array:
    """From rounding ``x`` to 8 bits, for each of its tokens."""
    block = spec.block or x.shape[1]
    if span is ScaleGranularity.BLOCK:
        peaks = _peaks(x, block)
    else:
        every = np.abs(x).max(axis=1 if span is ScaleGranularity.TOKEN else None, initial=0)
        peaks = np.broadcast_to(every.reshape(-1, 1), (len(x), -(-x.shape[1] // block)))
    steps = (peaks * (span is not ScaleGranularity.NONE) / _STEPS) ** 2
    return np.asarray(steps @ _sums(np.square(rows).sum(axis=0), block) / 12)


def _blocks(array: Array, block: int) -> Array:
    extra = -array.shape[-1] % block
    padded = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, extra)]) if extra else array
    return padded.reshape(*array.shape[:-1], -1, block)


def _peaks(rows: Array, block: int) -> Array:
    return np.asarray(np.abs(_blocks(rows, block)).max(axis=-1))


def _sums(energy: Array, block: int) -> Array:
    return np.asarray(_blocks(energy, block).sum(axis=-1))
