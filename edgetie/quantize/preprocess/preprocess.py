"""From calibration to the float graph that quantizes best: smoothed, and rotated where it pays."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.errors import QuantizeError
from edgetie.passes.run import run_passes
from edgetie.quantize.calibration.activations import activations
from edgetie.quantize.calibration.layerwise_run import Input
from edgetie.quantize.formats.weight_format import WeightFormat
from edgetie.quantize.preprocess.linear_inputs import LinearInput, find_linear_inputs
from edgetie.quantize.preprocess.quantization_error import activation_error, weight_error
from edgetie.quantize.preprocess.rotate import Rotate, hadamard, linear_input_rotation, rotated
from edgetie.quantize.preprocess.smooth import Smooth, smoothable, smoothing
from edgetie.quantize.preprocess.value_projection import find_value_projection
from edgetie.quantize.weights.affine import Array
from edgetie.quantize.weights.array_spill import ArraySpill
from edgetie.quantize.weights.gptq import CORES, hessian
from edgetie.quantize.weights.linear_op import LinearOp
from edgetie.ties.groups import TieGroup

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
_WAITING = 2 * CORES  # activations at most that wait to be looked at: they are large
_TOKENS = 64  # and of an activation


@dataclass(frozen=True)
class PreprocessReport:
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
    readers: Mapping[str, Sequence[LinearOp]] = field(default_factory=dict)
    massive: Sequence[str] = ()


def preprocess_model(
    model: ir.Model,
    ties: Sequence[TieGroup],
    bundle: Bundle,
    model_path: Path,
    given: Input,
    form: Callable[[LinearOp], WeightFormat],
    store: ArraySpill,
    *,
    fixed: Collection[str] = (),
) -> PreprocessReport:
    """Smooth and rotate ``model`` in place.

    Args:
        model: a float graph, its products in the form of the ``linear`` pass.
        ties: verified after each pass.
        bundle: what the model is part of.
        model_path: the file ``model`` was read from, to run; its values have the same names.
        given: what to calibrate on.
        form: the form that a product will take.
        store: where what was measured waits.
        fixed: names of matrices that must stay as they are, because other models read them too.
    """
    linear_inputs = {
        name: linear_input
        for name, linear_input in find_linear_inputs(model).items()
        if not any(product.weight.name in fixed for product in linear_input.linear_ops)
    }
    if not linear_inputs:
        return PreprocessReport(note="nothing: no product whose input nothing else reads")
    smoothed = smoothable(model)
    found: dict[str, Future[_Settled | None]] = {}
    waiting: deque[Future[_Settled | None]] = deque()
    try:
        with ThreadPoolExecutor(CORES) as threads:  # decides while the model runs on
            for name, rows in activations(bundle, model_path, list(linear_inputs), given):
                smooths = name in smoothed
                found[name] = threads.submit(
                    _settle, linear_inputs[name], rows, form, store, smooths
                )
                waiting.append(found[name])
                if len(waiting) > _WAITING:
                    waiting.popleft().result()
            settled = {n: each for n, f in found.items() if (each := f.result()) is not None}
    except QuantizeError as error:
        if given.feeds:
            raise  # somebody wanted these
        return PreprocessReport(note=f"nothing: {str(error).splitlines()[0]}")
    smooth = Smooth({n: each.scales for n, each in settled.items() if each.scales is not None})
    rotate = Rotate([name for name, each in settled.items() if each.size > 1])
    run_passes(model, ties, [smooth, rotate])
    readers = {name: linear_inputs[name].linear_ops for name in settled}
    return PreprocessReport(
        smooth.changed,
        rotate.changed,
        grams={
            str(p.weight.name): settled[name].hessian for name, ps in readers.items() for p in ps
        },
        changes={name: each.change for name, each in settled.items()},
        readers=readers,
        massive=[name for each in settled.values() for name in each.massive],
    )


@dataclass(frozen=True)
class _Settled:
    """What is to become of an activation.

    Attributes:
        scales: that its channels are divided by; ``None`` where they cannot be.
        size: of the blocks that are rotated; 1 where they are not.
        massive: matrices of its products whose inputs are massive all the same.
        gram: makes the Gram matrix of what comes of it.
    """

    scales: Array | None
    size: int
    massive: Sequence[str]
    hessian: Callable[[], Array]

    def change(self, rows: Array) -> Array:
        """Rows ``(tokens, channels)``, smoothed and rotated."""
        divided = np.array(rows if self.scales is None else rows / self.scales, np.float32)
        return divided if self.size < 2 else rotated(divided, hadamard(self.size))


def _settle(
    linear_input: LinearInput,
    rows: Array,
    form: Callable[[LinearOp], WeightFormat],
    store: ArraySpill,
    smooth: bool,
) -> _Settled | None:
    """Decide what is done to an activation.

    Args:
        site: the activation.
        rows: its values ``(tokens, channels)``, which are lost.
        form: of a product.
        store: where the Gram matrix is kept.
        smooth: whether its channels can be scaled for nothing.

    Returns:
        ``None`` where it is not finite.
    """
    magnitudes = np.sqrt(np.einsum("ij,ij->j", rows, rows) / len(rows))
    if not np.isfinite(magnitudes).all():
        return None
    samples = [_some(product) for product in linear_input.linear_ops]
    scales = None
    if smooth:
        scales = smoothing(magnitudes, TABLE_STRENGTH if linear_input.reads_embedding else STRENGTH)
        rows /= scales
        samples = [some * scales for some in samples]
    x = rows[:: max(1, len(rows) // _TOKENS)].copy()
    free = find_value_projection(linear_input) is not None
    turns = free or all(form(product).supports_rotation for product in linear_input.linear_ops)
    size = linear_input_rotation(linear_input) if turns else 1
    if size > 1:
        matrix = hadamard(size)
        turned = rotated(x.copy(), matrix), [rotated(some.copy(), matrix) for some in samples]
        worth = 1.0 if free else WORTH
        if _noise(linear_input, *turned, form) < worth * _noise(linear_input, x, samples, form):
            x, samples = turned
            rows = rotated(rows, matrix)
        else:
            size = 1
    massive = [
        str(product.weight.name)
        for product, some in zip(linear_input.linear_ops, samples, strict=True)
        if _is_massive(x, some, form(product))
    ]
    return _Settled(scales, size, massive, store.put(hessian(rows)))


def _some(product: LinearOp) -> Array:
    """A few rows of a matrix."""
    every = product.read_weight()
    return np.array(every[:: max(1, len(every) // _ROWS)], np.float32, order="C")


def _noise(
    linear_input: LinearInput,
    x: Array,
    samples: list[Array],
    form: Callable[[LinearOp], WeightFormat],
) -> float:
    """The noise of all products of a site.

    Args:
        site: the activation.
        x: some of its rows.
        samples: some rows of each of its products' matrices.
        form: of a product.
    """
    total = 0.0
    for product, rows in zip(linear_input.linear_ops, samples, strict=True):
        made = form(product)
        total += weight_error(x, rows, made.spec(linear_input.channels))
        of_x = activation_error(x, rows, made.spec(linear_input.channels), made.activations)
        total += float(of_x.mean())
    return total


def _is_massive(x: Array, rows: Array, form: WeightFormat) -> bool:
    """Whether rounding activations takes too much of a product."""
    noise = activation_error(x, rows, form.spec(x.shape[1]), form.activations)
    return float((noise / (np.square(x @ rows.T).sum(axis=1) + _TINY)).mean()) > MASSIVE
