"""Rounding that makes up for its own errors (GPTQ, Frantar et al. 2022).

Columns of a matrix are rounded one after the other; the error of each is spread over those still to
come, weighted by how much their inputs vary together on the calibration text. The codes have the
form of plainly rounded ones and cost nothing at run time.

Errors are spread within regions of up to 768 columns, all of which are worked on at once: the Gram
matrices of wide layers stay small, and a short text says enough about them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetie.quantize.blockwise import ZERO_POINT, choose_block

Array = np.ndarray[Any, Any]

_REGION = 768
_DAMPING = 0.5
"""Share of the mean diagonal added to a Gram matrix: with less, the errors fit the calibration text
better and other texts worse."""

_ROWS = 1024  # rows at a time: scratch memory stays small
_INNER = 16  # columns rounded between two updates of the rest


def regions(columns: int) -> tuple[int, int]:
    """Number and width of the regions of a row, whole blocks each; the last may be padded."""
    block = choose_block(columns)
    blocks = -(-columns // block)
    count = -(-blocks // max(1, _REGION // block))
    return count, -(-blocks // count) * block


def gram(x: Array) -> Array:
    """``XᵀX`` of activations ``(tokens, K)`` within each region: ``(regions, width, width)``."""
    parts = split(x)
    return np.asarray(parts.transpose(0, 2, 1) @ parts)


def split(rows: Array) -> Array:
    """Rows ``(n, K)`` by region, zeros behind column K: ``(regions, n, width)``."""
    count, width = regions(rows.shape[1])
    if rows.shape[1] != count * width:
        rows = np.pad(rows, [(0, 0), (0, count * width - rows.shape[1])])
    return np.ascontiguousarray(rows.reshape(len(rows), count, width).transpose(1, 0, 2))


def _spread(gram: Array) -> Array:
    """How the error of column j goes to the later ones: row j, ``(regions, width, width)``."""
    matrix = np.array(gram, np.float32)
    diagonal = np.einsum("rjj->rj", matrix)
    level = diagonal.mean(axis=1, keepdims=True)
    diagonal += np.where(level > 0, _DAMPING * level, 1.0)
    # the upper factor of the inverse, from the Cholesky factor of the matrix read backwards
    factor = np.linalg.cholesky(matrix[:, ::-1, ::-1])[:, ::-1, ::-1]
    upper = np.linalg.inv(factor)
    return np.asarray(upper / np.einsum("rjj->rj", upper)[:, :, None], np.float32)


def compensated(rows: Array, block: int, gram: Array) -> tuple[Array, Array]:
    """Round a float matrix, the errors of each column spread over later ones.

    Args:
        rows: ``(N, K)``.
        block: columns that share a scale, as :func:`choose_block` gives it for K.
        gram: :func:`gram` of what it is multiplied by.

    Returns:
        Codes, uint8 ``(N, blocks, block)``, and scales, float32 ``(N, blocks)``.
    """
    n, k = rows.shape
    blocks = -(-k // block)
    across = np.ascontiguousarray(_spread(gram).transpose(0, 2, 1))
    codes = np.empty((n, blocks * block), np.uint8)
    scales = np.empty((n, blocks), np.float32)
    for start in range(0, n, _ROWS):
        part = slice(start, min(n, start + _ROWS))
        rounded, steps = _round(np.asarray(rows[part], np.float32), block, across)
        codes[part] = rounded.reshape(-1, rounded.shape[2])[: blocks * block].T
        scales[part] = steps.reshape(-1, steps.shape[2])[:blocks].T
    return codes.reshape(n, blocks, block), scales


def _round(rows: Array, block: int, across: Array) -> tuple[Array, Array]:
    """Codes ``(regions, width, n)`` and scales ``(regions, width / block, n)`` of some rows."""
    work = np.ascontiguousarray(split(rows).transpose(0, 2, 1))
    count, width, n = work.shape
    codes = np.empty(work.shape, np.uint8)
    scales = np.empty((count, width // block, n), np.float32)
    errors = np.empty((count, _INNER, n), np.float32)
    for left in range(0, width, _INNER):
        if left % block == 0:
            scale = np.abs(work[:, left : left + block]).max(axis=1) / np.float32(127)
            scale[scale == 0] = 1.0
            scales[:, left // block] = scale
        for i in range(_INNER):
            j = left + i
            column = work[:, j]
            if i:
                column -= (across[:, j, None, left:j] @ errors[:, :i])[:, 0]
            code = np.rint(column / scale)
            np.clip(code, -127, 127, out=code)
            codes[:, j] = code + ZERO_POINT
            code *= scale
            np.subtract(column, code, out=errors[:, i])
        after = left + _INNER
        if after < width:
            work[:, after:] -= across[:, after:, left:after] @ errors
    return codes, scales
