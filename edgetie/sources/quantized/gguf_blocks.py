"""The quantized types of GGUF files: blocks of bytes to values, scales and offsets.

The layouts are those of ``ggml-common.h`` in https://github.com/ggml-org/ggml. In a type whose name
has a K, 256 values form a block, and parts of 16 or 32 of them have a small integer scale, and
perhaps a small integer minimum, of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgetie.sources.quantized.tensor import Array, QuantizedTensor

_NON_LINEAR = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16
)  # the values of the types NL and XS


@dataclass(frozen=True)
class _Parts:
    """What the bytes of ``n`` blocks hold.

    Attributes:
        values: ``(n, values of a block)``, unsigned.
        scales: float32 ``(n, parts)``.
        zero_point: of all values.
        offsets: float32 ``(n, parts)``, or ``None``.
        bits: of a value.
    """

    values: Array
    scales: Array
    zero_point: int = 0
    offsets: Array | None = None
    bits: int = 4


def split_blocks(type_name: str, rows: Array) -> QuantizedTensor | None:
    """Read the rows of a quantized tensor.

    Args:
        type_name: its type, such as ``Q4_K``.
        rows: uint8 ``(N, bytes of a row)``.

    Returns:
        ``None`` if the values of the type are not a scale times an integer, plus an offset.
    """
    if type_name not in _TYPES:
        return None
    block_bytes, read = _TYPES[type_name]
    parts = read(np.ascontiguousarray(rows).reshape(-1, block_bytes))
    count = len(rows)
    scales = np.ascontiguousarray(parts.scales.reshape(count, -1))
    values = parts.values.reshape(count, -1).astype(np.uint8, copy=False)
    return QuantizedTensor(
        parts.bits,
        values.shape[1] // scales.shape[1],
        values,
        scales,
        np.full(scales.shape, parts.zero_point, np.uint8),
        None if parts.offsets is None else np.ascontiguousarray(parts.offsets.reshape(count, -1)),
        type_name,
    )


def _halves(blocks: Array, start: int) -> Array:
    """Read a float16 of each block, as float32 ``(n, 1)``."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _nibbles(data: Array) -> Array:
    """Unpack bytes ``(…, m)``: all lower halves, then all upper halves, ``(…, 2 m)``."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _bits(data: Array) -> Array:
    """Unpack bytes ``(n, m)`` to their bits, the lowest of each byte first, ``(n, 8 m)``."""
    return np.unpackbits(data, axis=1, bitorder="little")


def _planes(data: Array, width: int, bits: int) -> Array:
    """Unpack runs of ``width`` bytes: the lowest bits of all, then the next ones, ``(n, -1)``."""
    runs = data.reshape(len(data), -1, 1, width)
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    return ((runs >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(data), -1)


def _q4_0(blocks: Array) -> _Parts:
    return _Parts(_nibbles(blocks[:, 2:]), _halves(blocks, 0), 8)


def _q4_1(blocks: Array) -> _Parts:
    return _Parts(_nibbles(blocks[:, 4:]), _halves(blocks, 0), offsets=_halves(blocks, 2))


def _q5_0(blocks: Array) -> _Parts:
    values = _nibbles(blocks[:, 6:]) | _bits(blocks[:, 2:6]) << 4
    return _Parts(values, _halves(blocks, 0), 16, bits=8)


def _q5_1(blocks: Array) -> _Parts:
    values = _nibbles(blocks[:, 8:]) | _bits(blocks[:, 4:8]) << 4
    return _Parts(values, _halves(blocks, 0), offsets=_halves(blocks, 2), bits=8)


def _q8_0(blocks: Array) -> _Parts:
    return _Parts(blocks[:, 2:] ^ 128, _halves(blocks, 0), 128, bits=8)


def _q2_k(blocks: Array) -> _Parts:
    small = blocks[:, :16]
    scales = _halves(blocks, 80) * (small & 15).astype(np.float32)
    minimums = _halves(blocks, 82) * (small >> 4).astype(np.float32)
    return _Parts(_planes(blocks[:, 16:80], 32, 2), scales, offsets=-minimums)


def _q3_k(blocks: Array) -> _Parts:
    packed = blocks[:, 96:108]
    low = _nibbles(packed[:, :8])
    high = _planes(packed[:, 8:], 4, 2)
    small = (low | high << 4).astype(np.int16) - 32
    values = _planes(blocks[:, 32:96], 32, 2) | _planes(blocks[:, :32], 32, 1) << 2
    return _Parts(values, _halves(blocks, 108) * small.astype(np.float32), 4)


def _scales_and_minimums(blocks: Array) -> tuple[Array, Array]:
    """Read the eight scales and minimums of Q4_K and Q5_K, of 6 bits each in 12 bytes."""
    first, second, third = (blocks[:, start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=1)
    minimums = np.concatenate([second & 63, (third >> 4) | (second >> 6) << 4], axis=1)
    return (
        _halves(blocks, 0) * scales.astype(np.float32),
        _halves(blocks, 2) * minimums.astype(np.float32),
    )


def _q4_k(blocks: Array) -> _Parts:
    scales, minimums = _scales_and_minimums(blocks)
    return _Parts(_planes(blocks[:, 16:], 32, 4), scales, offsets=-minimums)


def _q5_k(blocks: Array) -> _Parts:
    scales, minimums = _scales_and_minimums(blocks)
    values = _planes(blocks[:, 48:], 32, 4) | _planes(blocks[:, 16:48], 32, 1) << 4
    return _Parts(values, scales, offsets=-minimums, bits=8)


def _q6_k(blocks: Array) -> _Parts:
    low = _planes(blocks[:, :128], 64, 4)
    values = low | _planes(blocks[:, 128:192], 32, 2) << 4
    small = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return _Parts(values, _halves(blocks, 208) * small.astype(np.float32), 32, bits=8)


def _non_linear(indices: Array) -> Array:
    return (_NON_LINEAR + 128).astype(np.uint8)[indices]


def _iq4_nl(blocks: Array) -> _Parts:
    return _Parts(_non_linear(_nibbles(blocks[:, 2:])), _halves(blocks, 0), 128, bits=8)


def _iq4_xs(blocks: Array) -> _Parts:
    high = np.ascontiguousarray(blocks[:, 2:4])
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    small = (
        low | np.stack([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=2).reshape(-1, 8) << 4
    )
    values = _non_linear(_nibbles(blocks[:, 8:].reshape(-1, 8, 16)))
    scales = _halves(blocks, 0) * (small.astype(np.float32) - 32)
    return _Parts(values.reshape(len(blocks), -1), scales, 128, bits=8)


_TYPES: dict[str, tuple[int, Callable[[Array], _Parts]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q2_K": (84, _q2_k),
    "Q3_K": (110, _q3_k),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
    "IQ4_NL": (18, _iq4_nl),
    "IQ4_XS": (136, _iq4_xs),
}
"""Bytes of a block, and what reads it, by type."""
