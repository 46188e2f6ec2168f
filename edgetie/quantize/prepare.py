"""From calibration to the float graph that quantizes best: smoothed, and rotated where it pays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgetie.bundle import Bundle
from edgetie.errors import QuantizeError
from edgetie.passes import run_passes
from edgetie.quantize.blockwise import choose_block
from edgetie.quantize.calibrate import Activation, measure
from edgetie.quantize.compensate import regions
from edgetie.quantize.noise import Sample, noise
from edgetie.quantize.rotate import Rotate, hadamard, rotated, site_rotation
from edgetie.quantize.sites import Array, Site, find_sites
from edgetie.quantize.smooth import Smooth
from edgetie.quantize.values import find_values
from edgetie.ties import TieGroup

STRENGTH = 0.4
"""Exponent of smoothing; measured on a 135 M parameter model."""

TABLE_STRENGTH = 0.2
"""The same in front of a tied table, which is looked up in as well."""

WORTH = 0.9
"""A rotation may cost three small operators at run time: the share of the noise it may leave."""

_ROWS = 256  # rows of a matrix that its noise is estimated from


@dataclass(frozen=True)
class Preparation:
    """How many activations were smoothed and rotated, and why nothing was, if so.

    Attributes:
        grams: how the inputs of each matrix vary together, by the matrix's name.
    """

    smoothed: int = 0
    rotated: int = 0
    note: str = ""
    grams: Mapping[str, Array] = field(default_factory=dict)


def prepare(
    model: ir.Model,
    ties: Sequence[TieGroup],
    bundle: Bundle,
    model_path: Path,
    tokens: Sequence[int],
    *,
    clips: Sequence[dict[str, Array]] = (),
    fixed: Collection[str] = (),
) -> Preparation:
    """Smooth and rotate ``model`` in place.

    Args:
        model: a float graph, its products in the form of the ``linear`` pass.
        ties: verified after each pass.
        bundle: what the model is part of.
        model_path: the file ``model`` was read from, to run; its values have the same names.
        tokens: the calibration text.
        clips: what the encoder reads of the calibration sounds, of a model that hears.
        fixed: names of matrices that must stay as they are, because other models read them too.
    """
    sites = {
        name: site
        for name, site in find_sites(model).items()
        if not any(product.matrix.name in fixed for product in site.products)
    }
    if not sites:
        return Preparation(note="nothing: no product whose input nothing else reads")
    try:
        found = measure(bundle, model_path, list(sites), tokens, clips)
    except QuantizeError as error:
        return Preparation(note=f"nothing: {str(error).splitlines()[0]}")
    found = {name: a for name, a in found.items() if np.isfinite(a.magnitudes).all()}
    smooth = Smooth(
        {name: a.magnitudes for name, a in found.items()},
        {name: TABLE_STRENGTH if sites[name].tables else STRENGTH for name in found},
    )
    run_passes(model, ties, [smooth])
    found = {name: _divided(a, smooth.scales.get(name)) for name, a in found.items()}
    worth = {name for name, activation in found.items() if _pays(sites[name], activation.rows)}
    sizes = {name: site_rotation(sites[name]) if name in worth else 1 for name in found}
    rotate = Rotate(worth)
    run_passes(model, ties, [rotate])
    grams: dict[str, Array] = {}
    for name, activation in found.items():
        gram = _turned(activation.gram, sizes[name])
        grams |= {str(product.matrix.name): gram for product in sites[name].products}
    return Preparation(smooth.changed, rotate.changed, grams=grams)


def _divided(activation: Activation, scales: Array | None) -> Activation:
    """What was measured, had the activation been divided by ``scales``."""
    if scales is None:
        return activation
    count, width = regions(len(scales))
    padded = np.zeros(count * width, np.float32)  # what pads a region is zero
    padded[: len(scales)] = 1 / scales
    factors = padded.reshape(count, width)
    return Activation(
        activation.magnitudes / scales,
        activation.rows / scales,
        activation.gram * factors[:, :, None] * factors[:, None, :],
    )


def _turned(gram: Array, size: int) -> Array:
    """The Gram matrix of an activation whose blocks of ``size`` channels were rotated."""
    if size < 2:
        return gram
    matrix = hadamard(size)
    half = rotated(gram, matrix).transpose(0, 2, 1)
    return rotated(np.ascontiguousarray(half), matrix)


def _pays(site: Site, x: Array) -> bool:
    """Whether rotation leaves little enough of the noise in the site's products."""
    size, block = site_rotation(site), choose_block(site.channels)
    if size < 2:
        return False
    matrix = hadamard(size)
    before = after = 0.0
    for product in site.products:
        every = product.rows
        rows = np.array(every[:: max(1, len(every) // _ROWS)], np.float32, order="C")
        before += noise(Sample(x, rows), block)
        after += noise(Sample(rotated(x.copy(), matrix), rotated(rows, matrix)), block)
    return after < (WORTH if find_values(site) is None else 1.0) * before
