"""From calibration to the float graph that quantizes best: smoothed, and rotated where it pays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgetie.bundle import Bundle
from edgetie.errors import QuantizeError
from edgetie.passes import run_passes
from edgetie.quantize.calibrate import Activation, measure
from edgetie.quantize.compensate import regions
from edgetie.quantize.forms import Form
from edgetie.quantize.noise import noise_of_activations, noise_of_rows
from edgetie.quantize.recording import Input
from edgetie.quantize.rotate import Rotate, hadamard, rotated, rotated_columns, site_rotation
from edgetie.quantize.sites import Array, Product, Site, find_sites
from edgetie.quantize.smooth import Smooth
from edgetie.quantize.store import Store
from edgetie.quantize.values import find_values
from edgetie.ties import TieGroup

STRENGTH = 0.4
"""Exponent of smoothing; measured on a 135 M parameter model."""

TABLE_STRENGTH = 0.2
"""The same in front of a tied table, which is looked up in as well."""

WORTH = 0.9
"""A rotation may cost three small operators at run time: the share of the noise it may leave."""

MASSIVE = 1e-3
"""The share of a product's energy that rounding activations may add, mean over tokens; where they
are normally distributed it is a thirtieth of that."""

_TINY = 1e-20

_ROWS = 256  # rows of a matrix that its noise is estimated from


@dataclass(frozen=True)
class Preparation:
    """How many activations were smoothed and rotated, and why nothing was, if so.

    Attributes:
        grams: makes how the inputs of each matrix vary together, by the matrix's name.
        changes: what became of each activation, by its name: what turns its rows
            ``(tokens, channels)`` into those that products read now.
        readers: the products that read each activation, by its name.
        massive: matrices whose inputs have values so large that rounding these costs the others
            their precision, even when smoothed and rotated (massive activations, Sun et al. 2024).
    """

    smoothed: int = 0
    rotated: int = 0
    note: str = ""
    grams: Mapping[str, Callable[[], Array]] = field(default_factory=dict)
    changes: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)
    readers: Mapping[str, Sequence[Product]] = field(default_factory=dict)
    massive: Sequence[str] = ()


def prepare(
    model: ir.Model,
    ties: Sequence[TieGroup],
    bundle: Bundle,
    model_path: Path,
    given: Input,
    form: Callable[[Product], Form],
    store: Store,
    release: Callable[[], object],
    *,
    fixed: Collection[str] = (),
) -> Preparation:
    """Smooth and rotate ``model`` in place.

    Args:
        model: a float graph, its products in the form of the ``linear`` pass.
        ties: verified after each pass.
        bundle: what the model is part of.
        model_path: the file ``model`` was read from, to run; its values have the same names.
        given: what to calibrate on.
        form: the form that a product will take.
        store: where what was measured waits.
        release: called when a weight has been read.
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
        found = measure(bundle, model_path, list(sites), given, store)
    except QuantizeError as error:
        if given.feeds:
            raise  # somebody wanted these
        return Preparation(note=f"nothing: {str(error).splitlines()[0]}")
    found = {name: a for name, a in found.items() if np.isfinite(a.magnitudes).all()}
    samples = {}
    for name in found:
        samples[name] = [_some(product) for product in sites[name].products]
        release()
    smooth = Smooth(
        {name: a.magnitudes for name, a in found.items()},
        {name: TABLE_STRENGTH if sites[name].tables else STRENGTH for name in found},
    )
    run_passes(model, ties, [smooth])
    scales = smooth.scales
    worth: set[str] = set()
    massive: list[str] = []
    for name, activation in found.items():
        factors, site = scales.get(name, np.float32(1)), sites[name]
        free = find_values(site) is not None
        turns = free or all(form(product).rotates for product in site.products)
        size = site_rotation(site) if turns else 1
        x, rows = activation.rows / factors, [some * factors for some in samples[name]]
        plain = _noise(site, x, rows, form)
        if size > 1:
            matrix = hadamard(size)
            turned = rotated(x.copy(), matrix), [rotated(some, matrix) for some in rows]
            noise = _noise(site, *turned, form)
            if noise < (1.0 if free else WORTH) * plain:
                worth.add(name)
                plain = noise
                x, rows = turned
        massive += [
            str(product.matrix.name)
            for product, some in zip(site.products, rows, strict=True)
            if _is_massive(x, some, form(product))
        ]
    sizes = {name: site_rotation(sites[name]) if name in worth else 1 for name in found}
    rotate = Rotate(worth)
    run_passes(model, ties, [rotate])
    changes = {name: _change(scales.get(name), sizes[name]) for name in found}
    readers = {name: sites[name].products for name in found}
    grams = {
        str(product.matrix.name): _gram(a, scales.get(name), sizes[name])
        for name, a in found.items()
        for product in readers[name]
    }
    return Preparation(
        smooth.changed,
        rotate.changed,
        grams=grams,
        changes=changes,
        readers=readers,
        massive=massive,
    )


def _change(scales: Array | None, size: int) -> Callable[[Array], Array]:
    """What smoothing and rotating does to rows of an activation."""

    def change(rows: Array) -> Array:
        divided = rows if scales is None else rows / scales
        return divided if size < 2 else rotated(np.array(divided, np.float32), hadamard(size))

    return change


def _gram(activation: Activation, scales: Array | None, size: int) -> Callable[[], Array]:
    """The Gram matrix of an activation, had it been divided, and its blocks rotated."""

    def make() -> Array:
        gram = activation.gram()
        if scales is not None:
            count, width = regions(len(scales))
            padded = np.zeros(count * width, np.float32)  # what pads a region is zero
            padded[: len(scales)] = 1 / scales
            factors = padded.reshape(count, width)
            gram = gram * factors[:, :, None] * factors[:, None, :]
        if size < 2:
            return gram
        matrix = hadamard(size)
        count, width, _ = gram.shape
        half = rotated_columns(gram.reshape(count * width, width), matrix)
        return rotated(half, matrix).reshape(gram.shape)

    return make


def _some(product: Product) -> Array:
    """A few rows of a matrix."""
    every = product.rows
    return np.array(every[:: max(1, len(every) // _ROWS)], np.float32, order="C")


def _noise(site: Site, x: Array, samples: list[Array], form: Callable[[Product], Form]) -> float:
    """The noise of all products of a site.

    Args:
        site: the activation.
        x: some of its rows.
        samples: some rows of each of its products' matrices.
        form: of a product.
    """
    total = 0.0
    for product, rows in zip(site.products, samples, strict=True):
        made = form(product)
        total += noise_of_rows(x, rows, made.grid(site.channels))
        of_x = noise_of_activations(x, rows, made.grid(site.channels), made.activations)
        total += float(of_x.mean())
    return total


def _is_massive(x: Array, rows: Array, form: Form) -> bool:
    """Whether rounding activations takes too much of a product."""
    noise = noise_of_activations(x, rows, form.grid(x.shape[1]), form.activations)
    return float((noise / (np.square(x @ rows.T).sum(axis=1) + _TINY)).mean()) > MASSIVE
