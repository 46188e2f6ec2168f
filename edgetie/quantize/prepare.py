"""From calibration to the float graph that quantizes best: smoothing, rotation, block sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.errors import QuantizeError
from edgetie.passes import run_passes
from edgetie.passes._base import weight
from edgetie.quantize.blocks import Sample, spread_blocks
from edgetie.quantize.calibrate import Activation, measure
from edgetie.quantize.rotate import Rotate
from edgetie.quantize.sites import Array, Site, find_sites
from edgetie.quantize.smooth import Smooth
from edgetie.ties import TieGroup

STRENGTH = 0.5
"""Exponent of smoothing; measured on a 135 M parameter model."""

HEAD_STRENGTH = 0.35
"""The same in front of a tied table, which is rotated besides and looked up in."""

SCALE_BYTES = 0.09
"""Bytes of scales for each weight that may be spent: blocks of 64 take 0.0625, of 32 0.125."""

_ROWS = 512  # rows of a matrix that its noise is estimated from


@dataclass
class Preparation:
    """What was done to the graph.

    Attributes:
        blocks: block size by name of a matrix.
        smoothed: number of activations smoothed.
        rotated: number of activations rotated.
        note: why nothing was done, if so.
    """

    blocks: dict[str, int] = field(default_factory=dict)
    smoothed: int = 0
    rotated: int = 0
    note: str = ""


def prepare(
    model: ir.Model,
    ties: Sequence[TieGroup],
    model_path: Path,
    tokens: Sequence[int],
    limit: int | None,
) -> Preparation:
    """Smooth and rotate ``model`` in place, and choose block sizes.

    Args:
        model: a float graph, its products in the form of the ``linear`` pass.
        ties: verified after each pass.
        model_path: the file ``model`` was read from, to run; its values have the same names.
        tokens: the calibration text.
        limit: the longest sequence the model takes.
    """
    sites = find_sites(model)
    if not sites:
        return Preparation(note="no product whose input nothing else reads")
    try:
        found = measure(model_path, list(sites), tokens, limit)
    except QuantizeError as error:
        return Preparation(note=str(error).splitlines()[0])
    finite = {n: a for n, a in found.items() if np.isfinite(a.magnitudes).all()}
    heads = [name for name, site in sites.items() if site.tables and name in finite]
    strengths = {name: HEAD_STRENGTH if name in heads else STRENGTH for name in finite}
    smooth = Smooth({name: a.magnitudes for name, a in finite.items()}, strengths)
    rotate = Rotate(heads)
    run_passes(model, ties, [smooth, rotate])
    samples: dict[str, Sample] = {}
    for name, activation in finite.items():
        x = _changed(activation, smooth.scales.get(name), rotate.matrices.get(name))
        samples.update(_samples(sites[name], x))
    budget = int(SCALE_BYTES * sum(s.count * s.x.shape[1] for s in samples.values()))
    return Preparation(spread_blocks(samples, budget), smooth.changed, rotate.changed)


def _changed(activation: Activation, scales: Array | None, matrix: Array | None) -> Array:
    """Calibration rows as they are behind smoothing and rotation."""
    x = activation.rows if scales is None else activation.rows / scales
    if matrix is None:
        return x
    return np.asarray((x.reshape(-1, len(matrix)) @ matrix).reshape(x.shape))


def _samples(site: Site, x: Array) -> dict[str, Sample]:
    samples: dict[str, Any] = {}
    for product in site.products:
        right, left = weight(product.inputs[1]), weight(product.inputs[0])
        if right is not None:
            rows = right.numpy().T
            name = str(product.inputs[1].name)  # type: ignore[union-attr]
        elif left is not None:
            rows = left.numpy()
            name = str(product.inputs[0].name)  # type: ignore[union-attr]
        else:
            continue
        samples[name] = Sample(x, rows[:: max(1, len(rows) // _ROWS)].copy(), len(rows))
    return samples
