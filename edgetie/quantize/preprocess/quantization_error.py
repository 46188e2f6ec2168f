"""Estimate the error that quantization adds to a linear output, from samples of its operands."""

import numpy as np

from edgetie.quantize.formats.weight_format import ScaleGranularity
from edgetie.quantize.weights.affine import Array, QuantSpec

_LEVELS = 127  # up to the largest activation


def weight_error(x: Array, weight: Array, spec: QuantSpec) -> float:
    """Estimate the error energy of the average token from quantizing a weight ``(out, in)``.

    ``x`` is its activations ``(tokens, in)``.
    """
    block = spec.block or x.shape[1]
    scales = 2 * _block_peaks(weight, block) / ((1 << spec.bits) - 1)
    energy = _blocks(np.square(x).mean(axis=0), block).sum(axis=-1)
    return float((scales**2).sum(axis=0) @ energy) / 12


def activation_error(
    x: Array, weight: Array, spec: QuantSpec, granularity: ScaleGranularity
) -> Array:
    """Estimate the error energy of each token from quantizing ``x`` to 8 bits: ``(tokens,)``."""
    block = spec.block or x.shape[1]
    if granularity is ScaleGranularity.NONE:
        return np.zeros(len(x), np.float32)
    if granularity is ScaleGranularity.BLOCK:
        peaks = _block_peaks(x, block)
    else:
        peaks = np.abs(x).max(axis=1 if granularity is ScaleGranularity.TOKEN else None, initial=0)
        peaks = np.broadcast_to(peaks.reshape(-1, 1), (len(x), -(-x.shape[1] // block)))
    energy = _blocks(np.square(weight).sum(axis=0), block).sum(axis=-1)
    return np.asarray((peaks / _LEVELS) ** 2 @ energy / 12)


def _blocks(array: Array, block: int) -> Array:
    """Split the last axis into blocks, padded with zeros: ``(…, blocks, block)``."""
    padding = -array.shape[-1] % block
    padded = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, padding)]) if padding else array
    return padded.reshape(*array.shape[:-1], -1, block)


def _block_peaks(array: Array, block: int) -> Array:
    return np.asarray(np.abs(_blocks(array, block)).max(axis=-1))
