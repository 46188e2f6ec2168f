"""Decide from a calibration run how to smooth and rotate a float graph, and do it."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.errors import QuantizeError, summarize
from edgetie.passes.base import run_passes
from edgetie.quantize.calibration.activations import collect_activations
from edgetie.quantize.calibration.layerwise_run import CalibrationInput
from edgetie.quantize.formats.weight_format import WeightFormat
from edgetie.quantize.preprocess.linear_inputs import LinearInput, find_linear_inputs
from edgetie.quantize.preprocess.quantization_error import activation_error, weight_error
from edgetie.quantize.preprocess.rotate import Rotate, hadamard, rotate_blocks, rotation_size
from edgetie.quantize.preprocess.smooth import Smooth, find_smoothable_inputs, smoothing_scales
from edgetie.quantize.preprocess.value_projection import find_value_projection
from edgetie.quantize.weights.affine import Array
from edgetie.quantize.weights.array_spill import ArraySpill
from edgetie.quantize.weights.gptq import CORES, hessian
from edgetie.quantize.weights.linear_op import LinearOp
from edgetie.ties.groups import TieGroup

_STRENGTH = 0.4  # exponent of smoothing; measured on a 135 M parameter model
_ROTATION_GAIN = 0.9  # share of the error that a rotation may leave if it needs three operators
# share of a linear output's energy that quantized activations may add as an error, mean over
# tokens; of normally distributed ones it is a thirtieth of that
_MASSIVE = 1e-3
_TINY = 1e-20
_SAMPLED_CHANNELS = 256  # output channels of a weight that its error is estimated from
_SAMPLED_TOKENS = 64  # of an activation
_MAX_PENDING = 2 * CORES  # activations that wait for a decision; they are large

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreprocessReport:
    """How many activations were smoothed and rotated, or why none were.

    Attributes:
        note: why nothing was calibrated; empty if something was.
        hessians: makers of the Hessian of each weight's input, by the weight's name.
        transforms: what was done to each activation ``(tokens, channels)``, by its name.
        linear_ops: the linear operators that read each activation, by its name.
        massive: weights whose inputs are massive activations (Sun et al. 2024), even when smoothed
            and rotated: quantized, they cost the others their precision.
    """

    smoothed: int = 0
    rotated: int = 0
    note: str = ""
    hessians: Mapping[str, Callable[[], Array]] = field(default_factory=dict)
    transforms: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)
    linear_ops: Mapping[str, Sequence[LinearOp]] = field(default_factory=dict)
    massive: Sequence[str] = ()


def preprocess_model(
    model: ir.Model,
    ties: Sequence[TieGroup],
    bundle: Bundle,
    model_path: Path,
    inputs: CalibrationInput,
    format_of: Callable[[LinearOp], WeightFormat],
    spill: ArraySpill,
    *,
    fixed: Collection[str] = (),
) -> PreprocessReport:
    """Smooth and rotate ``model`` in place.

    Args:
        model: a float graph, whose linear layers are MatMuls.
        ties: verified after each pass.
        bundle: what the model is part of.
        model_path: the file to run, whose values have the same names.
        inputs: what to calibrate on.
        format_of: returns the format of a linear operator's weight.
        spill: where Hessians wait.
        fixed: names of weights that must not change, because other models read them too.

    Raises:
        QuantizeError: if the model cannot be run on the caller's own inputs.
    """
    linear_inputs = {
        name: linear_input
        for name, linear_input in find_linear_inputs(model).items()
        if not any(linear_op.weight.name in fixed for linear_op in linear_input.linear_ops)
    }
    if not linear_inputs:
        return PreprocessReport(note="nothing: no activation that only linear layers read")
    smoothable = find_smoothable_inputs(model)
    futures: dict[str, Future[_Decision | None]] = {}
    try:
        with ThreadPoolExecutor(CORES) as threads:  # decides while the model runs on
            activations = collect_activations(bundle, model_path, list(linear_inputs), inputs)
            for name, tokens in activations:
                futures[name] = threads.submit(
                    _decide, linear_inputs[name], tokens, format_of, spill, name in smoothable
                )
                for future in [*futures.values()][:-_MAX_PENDING]:
                    future.result()
            results = {name: future.result() for name, future in futures.items()}
    except QuantizeError as error:
        if inputs.feeds:
            raise  # the caller's own
        logger.debug("%s: not calibrated", model_path, exc_info=True)
        return PreprocessReport(note=f"nothing: {summarize(error)}")
    decisions = {name: each for name, each in results.items() if each is not None}
    smooth = Smooth({n: each.scales for n, each in decisions.items() if each.scales is not None})
    run_passes(model, ties, [smooth])
    rotate = Rotate([name for name, each in decisions.items() if each.block_size > 1])
    run_passes(model, ties, [rotate])
    linear_ops = {name: linear_inputs[name].linear_ops for name in decisions}
    return PreprocessReport(
        smooth.changed,
        rotate.changed,
        hessians={
            str(linear_op.weight.name): decisions[name].hessian
            for name, readers in linear_ops.items()
            for linear_op in readers
        },
        transforms={name: decision.transform for name, decision in decisions.items()},
        linear_ops=linear_ops,
        massive=[name for decision in decisions.values() for name in decision.massive],
    )


@dataclass(frozen=True)
class _Decision:
    """What is done to an activation, and what it is then."""

    scales: Array | None  # divisors of its channels
    block_size: int  # channels that are rotated together; 1 for no rotation
    massive: Sequence[str]  # names of the weights whose inputs stay massive
    hessian: Callable[[], Array]

    def transform(self, tokens: Array) -> Array:
        """Smooth and rotate ``(tokens, channels)``."""
        scaled = np.array(tokens if self.scales is None else tokens / self.scales, np.float32)
        return scaled if self.block_size < 2 else rotate_blocks(scaled, hadamard(self.block_size))


def _decide(
    linear_input: LinearInput,
    tokens: Array,
    format_of: Callable[[LinearOp], WeightFormat],
    spill: ArraySpill,
    is_smoothable: bool,
) -> _Decision | None:
    """Decide what is done to an activation; ``None`` if it is not finite.

    ``tokens`` ``(tokens, channels)`` are overwritten.
    """
    magnitudes = np.sqrt(np.einsum("ij,ij->j", tokens, tokens) / len(tokens))
    if not np.isfinite(magnitudes).all():
        return None
    formats = [format_of(op) for op in linear_input.linear_ops]
    weights = [_sample(op.read_weight(), _SAMPLED_CHANNELS) for op in linear_input.linear_ops]
    scales = None
    if is_smoothable:
        scales = smoothing_scales(magnitudes, _STRENGTH)
        tokens /= scales
        weights = [weight * scales for weight in weights]
    x = _sample(tokens, _SAMPLED_TOKENS)
    is_free = find_value_projection(linear_input) is not None
    can_rotate = is_free or all(each.supports_rotation for each in formats)
    block_size = rotation_size(linear_input) if can_rotate else 1
    if block_size > 1:
        matrix = hadamard(block_size)
        rotated_x = rotate_blocks(x.copy(), matrix)
        rotated_weights = [rotate_blocks(weight.copy(), matrix) for weight in weights]
        limit = (1.0 if is_free else _ROTATION_GAIN) * _output_error(x, weights, formats)
        if _output_error(rotated_x, rotated_weights, formats) < limit:
            x, weights = rotated_x, rotated_weights
            tokens = rotate_blocks(tokens, matrix)
        else:
            block_size = 1
    massive = []
    for linear_op, weight, each in zip(linear_input.linear_ops, weights, formats, strict=True):
        error = activation_error(x, weight, each.spec(x.shape[1]), each.activations)
        energy = np.square(x @ weight.T).sum(axis=1) + _TINY
        if float((error / energy).mean()) > _MASSIVE:
            massive.append(str(linear_op.weight.name))
    return _Decision(scales, block_size, massive, spill.put(hessian(tokens)))


def _sample(array: Array, count: int) -> Array:
    """Return every n-th row, at least ``count`` of them if there are so many."""
    return np.array(array[:: max(1, len(array) // count)], np.float32, order="C")


def _output_error(x: Array, weights: Sequence[Array], formats: Sequence[WeightFormat]) -> float:
    """Estimate the error of all linear operators that read ``x``."""
    total = 0.0
    for weight, each in zip(weights, formats, strict=True):
        spec = each.spec(x.shape[1])
        total += weight_error(x, weight, spec)
        total += float(activation_error(x, weight, spec, each.activations).mean())
    return total
