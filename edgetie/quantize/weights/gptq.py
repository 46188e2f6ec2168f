"""GPTQ: quantization that compensates its own errors (Frantar et al. 2022).

A few columns of a weight at a time compensate the errors of those before them, weighted by the
Hessian of their inputs, within groups of columns: so a short text is enough to estimate it.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edgetie.quantize.weights.affine import Array, QuantizedValues, QuantSpec, choose_block

_LARGEST_GROUP = 768
# share of the mean diagonal that is added to a Hessian; with less, other texts get worse
_DAMPING = 0.5

CORES = min(8, os.cpu_count() or 1)
"""Threads that quantize. BLAS is told to start none of its own."""

_CHANNELS = 2048  # output channels at a time, of all threads: scratch memory stays small
_FACTOR_WIDTH = 64  # columns that are factored at once
_WIDTH = 16  # columns that are quantized at once; it divides every block


def column_groups(in_channels: int) -> tuple[int, int]:
    """Return number and width of the column groups, whole blocks each; the last may be padded."""
    block = choose_block(in_channels)
    blocks = -(-in_channels // block)
    count = -(-blocks // max(1, _LARGEST_GROUP // block))
    return count, -(-blocks // count) * block


def hessian(x: Array) -> Array:
    """Return ``XᵀX`` of activations ``(tokens, K)`` by column group: ``(groups, width, width)``."""
    groups = split_columns(x)
    return np.stack([group.T @ group for group in groups])  # each by syrk: half the work of gemm


def split_columns(array: Array) -> Array:
    """Split ``(n, K)`` by column group, padded with zeros: ``(groups, n, width)``."""
    count, width = column_groups(array.shape[1])
    if array.shape[1] != count * width:
        array = np.pad(array, [(0, 0), (0, count * width - array.shape[1])])
    return np.ascontiguousarray(array.reshape(len(array), count, width).transpose(1, 0, 2))


def _feedback(hessian: Array) -> Array:
    """Compute how much of the error of column i a later column j compensates: ``[group, j, i]``.

    It is Uᵀ of ``H = (U + I) D (U + I)ᵀ``, U strictly upper by blocks, which needs no inverse of H
    (LDLQ, QuIP, Chee et al. 2023; by blocks, QuIP#, Tseng et al. 2024).
    """
    matrix = np.array(hessian[:, ::-1, ::-1], np.float32)  # reversed, to get the upper factor
    diagonal = np.einsum("rjj->rj", matrix)
    level = diagonal.mean(axis=1, keepdims=True)
    diagonal += np.where(level > 0, _DAMPING * level, 1.0)
    upper = _cholesky(matrix)[:, ::-1, ::-1]
    count, width, _ = upper.shape
    starts = range(0, width, _WIDTH)
    columns = np.ascontiguousarray(upper.transpose(0, 2, 1))
    columns = columns.reshape(count, len(starts), _WIDTH, width)
    own = np.stack(
        [columns[:, i, :, start : start + _WIDTH] for i, start in enumerate(starts)], axis=1
    )
    return np.asarray((np.linalg.inv(own) @ columns).reshape(count, width, width))


def _column_order(hessian: Array, block: int) -> Array:
    """Order the columns of each group: blocks of much energy first, whose errors cost most."""
    energy = np.einsum("rjj->rj", hessian)
    blocks = np.argsort(-energy.reshape(len(hessian), -1, block).sum(axis=2), axis=1, kind="stable")
    return np.asarray(blocks[:, :, None] * block + np.arange(block)).reshape(energy.shape)


def _cholesky(matrix: Array) -> Array:
    """Replace each ``(groups, width, width)`` by its lower factor. Most of the work is MatMuls,
    which makes it several times as fast as numpy's.
    """
    for start in range(0, matrix.shape[1], _FACTOR_WIDTH):
        stop = start + _FACTOR_WIDTH
        own, done = slice(start, stop), matrix[:, start:, :start]
        columns = matrix[:, start:, own]
        columns -= done @ done[:, :_FACTOR_WIDTH].transpose(0, 2, 1)
        factor = np.linalg.cholesky(columns[:, :_FACTOR_WIDTH])
        columns[:, :_FACTOR_WIDTH] = factor
        columns[:, _FACTOR_WIDTH:] = columns[:, _FACTOR_WIDTH:] @ np.linalg.inv(factor).transpose(
            0, 2, 1
        )
        matrix[:, own, stop:] = 0
    return matrix


def gptq_quantize(
    weight: Array, spec: QuantSpec, hessian: Array, *, transposed: bool = False
) -> QuantizedValues:
    """Quantize a float weight, the errors of each column compensated by later ones.

    Args:
        weight: ``(N, K)``.
        spec: its blocks must divide the column groups, as those of :func:`choose_block` do.
        hessian: :func:`hessian` of the weight's inputs.
        transposed: whether the weight is ``(K, N)``.
    """
    n, k = weight.shape[::-1] if transposed else weight.shape
    count = spec.block_count(k)
    padded = count * (spec.block or k)
    block = spec.block or _WIDTH
    order = _column_order(hessian, block)
    feedback = _feedback(np.stack([h[np.ix_(o, o)] for h, o in zip(hessian, order, strict=True)]))
    order += order.shape[1] * np.arange(len(order))[:, None]
    inverse = np.argsort(order, axis=None)
    values = np.empty((n, padded), np.uint8)
    scales = np.empty((n, count), np.float32)
    zero_points = np.empty((n, count), np.uint8)

    def quantize_channels(start: int) -> None:
        part = slice(start, min(n, start + step))
        columns = np.asarray(weight[:, part] if transposed else weight[part].T, np.float32)
        whole = spec.fit(columns, axis=0) if spec.block is None else None
        exact = np.pad(columns, [(0, order.size - k), (0, 0)]) if k < order.size else columns
        results = _quantize_columns(exact[order], spec, feedback, whole)
        quantized, scale, zero_point = (array.reshape(-1, array.shape[-1]) for array in results)
        values[part] = quantized[inverse[:padded]].T
        blocks = inverse[::block][:count] // block
        scales[part], zero_points[part] = scale[blocks].T, zero_point[blocks].T

    step = _CHANNELS // CORES
    with ThreadPoolExecutor(CORES) as pool:
        list((pool.map if n > step else map)(quantize_channels, range(0, n, step)))
    return QuantizedValues(values, scales, zero_points)


def _quantize_columns(
    exact: Array, spec: QuantSpec, feedback: Array, whole: tuple[Array, Array] | None
) -> tuple[Array, Array, Array]:
    """Quantize columns ``(groups, width, n)``, which are overwritten, to values of this shape,
    scales and zero points ``(groups, blocks, n)``. Parameters of blocks are fitted in turn, if
    there are none of ``whole`` output channels.
    """
    count, width, n = exact.shape
    block = spec.block or _WIDTH
    quantized = np.empty(exact.shape, np.uint8)
    scales = np.empty((count, width // block, n), np.float32)
    zero_points = np.empty((count, width // block, n), np.uint8)
    errors = np.zeros(exact.shape, np.float32)  # of a later column: what it has to compensate
    for start in range(0, width, block):
        stop = start + block
        values, compensation = exact[:, start:stop], errors[:, start:stop]
        if start:
            np.matmul(feedback[:, start:stop, :start], errors[:, :start], out=compensation)
        scale, zero_point = whole or spec.fit(values + compensation, axis=1)
        scales[:, start // block] = scale[..., 0, :]
        zero_points[:, start // block] = zero_point[..., 0, :]
        # within the block in units of the scale
        values *= 1 / scale
        values += zero_point
        compensation *= 1 / scale
        for left in range(start, stop, _WIDTH):
            part = slice(left, left + _WIDTH)
            if left > start:
                errors[:, part] += feedback[:, part, start:left] @ errors[:, start:left]
            rounded = np.rint(exact[:, part] + errors[:, part])
            np.clip(rounded, *spec.limits, out=rounded)
            quantized[:, part] = rounded
            np.subtract(exact[:, part], rounded, out=errors[:, part])
        compensation *= scale
    return quantized, scales, zero_points
