"""Block sizes: small ones where they save the most error for their bytes.

A block costs a float32 scale, so a block of 32 takes 4/32 of a byte a weight. What it saves is
estimated from the calibration text: the noise in a product's output, of rounding its activations
(a step of each block's largest value over 127, uniform, so step²/12) and its weights alike, over
the variance of the output, counted by the size of the matrix. Blocks are halved, the best saving a byte first, until the budget is
spent; mixed precision by such a ratio is as old as HAWQ (Dong et al. 2019), here only scales mix.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetie.quantize.blockwise import MIN_BLOCK, choose_block

Array = np.ndarray[Any, Any]

_Step = tuple[float, int, str, int]  # noise saved a byte, negative; bytes; matrix; block


@dataclass(frozen=True)
class Sample:
    """A product on the calibration text.

    Attributes:
        x: its activations ``(tokens, K)``.
        rows: some rows of its matrix ``(N, K)``, one an output channel.
        count: how many rows the whole matrix has.
    """

    x: Array
    rows: Array
    count: int


def spread_blocks(samples: Mapping[str, Sample], budget: int) -> dict[str, int]:
    """A block size for each matrix, by name.

    Args:
        samples: what each product does to the calibration text.
        budget: bytes of scales that may be spent on all of them; what the largest blocks need
            is spent in any case.
    """
    noises = {name: _noise(sample) for name, sample in samples.items()}
    blocks = {name: max(noise) for name, noise in noises.items()}
    spent = sum(_bytes(samples[name], block) for name, block in blocks.items())
    steps: list[_Step] = []
    for name in samples:
        _push(steps, name, samples[name], noises[name], blocks[name])
    while steps:
        _, cost, name, block = heapq.heappop(steps)
        if spent + cost > budget:
            continue
        spent += cost
        blocks[name] = block
        _push(steps, name, samples[name], noises[name], block)
    return blocks


def _push(
    steps: list[_Step], name: str, sample: Sample, noise: dict[int, float], block: int
) -> None:
    """Add the halving of a block, if there is one: minus the noise saved a byte comes first."""
    half = block // 2
    if half in noise:
        cost = _bytes(sample, half) - _bytes(sample, block)
        gain = (noise[block] - noise[half]) * sample.count * sample.x.shape[1]
        heapq.heappush(steps, (-gain / max(1, cost), cost, name, half))


def _bytes(sample: Sample, block: int) -> int:
    columns: int = sample.x.shape[1]
    return -(-columns // block) * 4 * sample.count


def _noise(sample: Sample) -> dict[int, float]:
    """Noise over variance of the output, by block size; the largest block pads the least."""
    x, rows = sample.x.astype(np.float32), sample.rows.astype(np.float32)
    columns = x.shape[1]
    output = x @ rows.T
    signal = float(output.var(axis=0).sum()) or 1.0
    sizes = []
    size = choose_block(columns)
    while size >= MIN_BLOCK:
        sizes.append(size)
        size //= 2
    x_energy, row_energy = (x * x).mean(axis=0), (rows * rows).sum(axis=0)
    noise = {}
    for size in sizes:
        peaks = (_peaks(x, size) ** 2).mean(axis=0) @ _sums(row_energy, size)
        peaks += (_peaks(rows, size) ** 2).sum(axis=0) @ _sums(x_energy, size)
        noise[size] = float(peaks) / (127.0**2 * 12) / signal
    return noise


def _padded(array: Array, size: int) -> Array:
    extra = -array.shape[-1] % size
    if extra:
        array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, extra)])
    return array.reshape(*array.shape[:-1], -1, size)


def _peaks(rows: Array, size: int) -> Array:
    return np.asarray(np.abs(_padded(rows, size)).max(axis=-1))


def _sums(energy: Array, size: int) -> Array:
    return np.asarray(_padded(energy, size).sum(axis=-1))
