"""Rounding that makes up for its own errors (GPTQ, Frantar et al. 2022).

Columns of a matrix are rounded a few at a time; each few make up for the errors of those before
them, weighted by how much their inputs vary together on the calibration text. The codes have the
form of plainly rounded ones and cost nothing at run time.

Errors are made up for within regions of up to 768 columns, all of which are worked on at once: the
Gram matrices of wide layers stay small, and a short text says enough about them.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from edgetie.quantize.weights.affine import (
    AffineParameters,
    QuantizedValues,
    QuantSpec,
    choose_block,
)

Array = np.ndarray[Any, Any]

_REGION = 768
_DAMPING = 0.5
"""Share of the mean diagonal added to a Gram matrix: with less, the errors fit the calibration text
better and other texts worse."""

CORES = min(8, os.cpu_count() or 1)
"""Threads that round; BLAS is told to start none of its own."""

_ROWS = 2048  # rows at a time, of all threads: scratch memory stays small
_BLOCK = 64  # columns that are factored at once
_GROUP = 16  # columns rounded at once; it divides every block


def column_groups(columns: int) -> tuple[int, int]:
    """Number and width of the regions of a row, whole blocks each; the last may be padded."""
    block = choose_block(columns)
    blocks = -(-columns // block)
    count = -(-blocks // max(1, _REGION // block))
    return count, -(-blocks // count) * block


def hessian(x: Array) -> Array:
    """``XᵀX`` of activations ``(tokens, K)`` by group: ``(column_groups, width, width)``."""
    return np.stack([part.T @ part for part in split(x)])  # each by syrk: half the work of gemm


def split(rows: Array) -> Array:
    """Rows ``(n, K)`` by region, zeros behind column K: ``(column_groups, n, width)``."""
    count, width = column_groups(rows.shape[1])
    if rows.shape[1] != count * width:
        rows = np.pad(rows, [(0, 0), (0, count * width - rows.shape[1])])
    return np.ascontiguousarray(rows.reshape(len(rows), count, width).transpose(1, 0, 2))


def _feedback(hessian: Array) -> Array:
    """How much of the error of column i is made up for by column j of a later group:
    ``[region, j, i]``.

    With ``H = (U + I) D (U + I)ᵀ``, U strictly upper by blocks of a group, that is U transposed:
    the form of GPTQ that needs no inverse of H (LDLQ, QuIP, Chee et al. 2023; by blocks, QuIP#,
    Tseng et al. 2024).
    """
    matrix = np.array(hessian[:, ::-1, ::-1], np.float32)  # backwards: the upper factor is wanted
    diagonal = np.einsum("rjj->rj", matrix)
    level = diagonal.mean(axis=1, keepdims=True)
    diagonal += np.where(level > 0, _DAMPING * level, 1.0)
    upper = _cholesky(matrix)[:, ::-1, ::-1]
    count, width, _ = upper.shape
    groups = width // _GROUP
    columns = np.ascontiguousarray(upper.transpose(0, 2, 1)).reshape(count, groups, _GROUP, width)
    own = np.stack([columns[:, g, :, g * _GROUP : (g + 1) * _GROUP] for g in range(groups)], axis=1)
    return np.asarray((np.linalg.inv(own) @ columns).reshape(count, width, width))


def _order(hessian: Array, block: int) -> Array:
    """Columns of each group ``(column_groups, width)`` in rounding order: blocks of much energy
    first, whose errors cost most and then have most columns to make up for them.
    """
    energy = np.einsum("rjj->rj", hessian)
    blocks = np.argsort(-energy.reshape(len(hessian), -1, block).sum(axis=2), axis=1, kind="stable")
    return np.asarray(blocks[:, :, None] * block + np.arange(block)).reshape(energy.shape)


def _cholesky(matrix: Array) -> Array:
    """The lower factor of each ``(column_groups, width, width)``, in its place: most of it are
    products, which makes it several times as fast as numpy's.
    """
    for start in range(0, matrix.shape[1], _BLOCK):
        own, done = slice(start, start + _BLOCK), matrix[:, start:, :start]
        columns = matrix[:, start:, own]
        columns -= done @ done[:, :_BLOCK].transpose(0, 2, 1)
        factor = np.linalg.cholesky(columns[:, :_BLOCK])
        columns[:, :_BLOCK] = factor
        columns[:, _BLOCK:] = columns[:, _BLOCK:] @ np.linalg.inv(factor).transpose(0, 2, 1)
        matrix[:, own, start + _BLOCK :] = 0
    return matrix


def gptq_quantize(
    matrix: Array, spec: QuantSpec, hessian: Array, *, turned: bool = False
) -> QuantizedValues:
    """Round a float matrix, the errors of each column made up for by later ones.

    Args:
        matrix: ``(N, K)``.
        grid: its blocks must divide the regions of K columns, as those of :func:`choose_block` do.
        gram: :func:`hessian` of what it is multiplied by.
        turned: whether the matrix is given as ``(K, N)``.
    """
    n, k = matrix.shape[::-1] if turned else matrix.shape
    count = spec.count(k)
    width = count * (spec.block or k)
    block = spec.block or _GROUP
    order = _order(hessian, block)
    feedback = _feedback(np.stack([g[np.ix_(o, o)] for g, o in zip(hessian, order, strict=True)]))
    order += order.shape[1] * np.arange(len(order))[:, None]
    place = np.argsort(order, axis=None)
    codes = np.empty((n, width), np.uint8)
    scales = np.empty((n, count), np.float32)
    zeros = np.empty((n, count), np.uint8) if spec.asymmetric else None

    def work(start: int) -> None:
        part = slice(start, min(n, start + step))
        columns = np.asarray(matrix[:, part] if turned else matrix[part].T, np.float32)
        fixed = spec.fit(columns, axis=0) if spec.block is None else None
        exact = np.pad(columns, [(0, order.size - k), (0, 0)]) if k < order.size else columns
        made = _round(exact[order], spec, feedback, fixed)
        rounded, steps, offsets = (array.reshape(-1, array.shape[-1]) for array in made)
        codes[part] = rounded[place[:width]].T
        blocks = place[::block][:count] // block
        scales[part] = steps[blocks].T
        if zeros is not None:
            zeros[part] = offsets[blocks].T

    step = _ROWS // CORES
    with ThreadPoolExecutor(CORES) as pool:
        list((pool.map if n > step else map)(work, range(0, n, step)))
    return QuantizedValues(codes, scales, zeros)


def _round(
    exact: Array, spec: QuantSpec, feedback: Array, fixed: AffineParameters | None
) -> tuple[Array, Array, Array]:
    """Codes ``(column_groups, width, n)``, scales, zeros ``(column_groups, blocks, n)`` of
    ``(column_groups, width, n)``, which are lost.

    ``fixed`` are those of whole rows ``(n,)``; of blocks they are found as their turn comes.
    """
    count, width, n = exact.shape
    block = spec.block or _GROUP
    codes = np.empty(exact.shape, np.uint8)
    scales = np.empty((count, width // block, n), np.float32)
    zeros = np.empty((count, width // block, n), np.uint8)
    errors = np.zeros(exact.shape, np.float32)  # of a column to come: what it has to make up for
    for start in range(0, width, block):
        stop = start + block
        values, missing = exact[:, start:stop], errors[:, start:stop]
        if start:
            np.matmul(feedback[:, start:stop, :start], errors[:, :start], out=missing)
        steps = fixed or spec.fit(values + missing, axis=1)
        scale, zero = steps.scale[..., None, :], steps.zero
        scales[:, start // block], zeros[:, start // block] = steps.scale, zero
        zero = zero[..., None, :] if isinstance(zero, np.ndarray) else zero
        # within the block in steps of the grid
        values *= 1 / scale
        values += zero
        missing *= 1 / scale
        for left in range(start, stop, _GROUP):
            group = slice(left, left + _GROUP)
            if left > start:
                errors[:, group] += feedback[:, group, start:left] @ errors[:, start:left]
            found = np.rint(exact[:, group] + errors[:, group])
            np.clip(found, *spec.codes, out=found)
            codes[:, group] = found
            np.subtract(exact[:, group], found, out=errors[:, group])
        missing *= scale
    return codes, scales, zeros
