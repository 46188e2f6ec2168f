"""Decide from a calibration run how to smooth and rotate a float graph, and do it."""

from __future__ import annotations

import logging
from collections import deque
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

STRENGTH = 0.4
"""Exponent of smoothing; measured on a 135 M parameter model."""

EMBEDDING_STRENGTH = 0.2
"""The same for the input of a tied head, whose smoothing changes the embedding as well."""

ROTATION_GAIN = 0.9
"""Share of the error that a rotation may leave if it needs three small operators at run time."""

MASSIVE = 1e-3
"""Share of a linear output's energy that quantized activations may add as an error, mean over
tokens. If they are normally distributed it is a thirtieth of that."""

_TINY = 1e-20
_SAMPLED_CHANNELS = 256  # output channels of a weight that its error is estimated from
_SAMPLED_TOKENS = 64  # of an activation
_MAX_PENDING = 2 * CORES  # activations that wait for a decision; they are large

FormatOf = Callable[[LinearOp], WeightFormat]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreprocessReport:
    """How many activations were smoothed and rotated, or why none were.

    Attributes:
        smoothed: number of activations.
        rotated: number of activations.
        note: why nothing was calibrated; empty if something was.
        hessians: makers of the Hessian of each weight's input, by the weight's name.
        transforms: what was done to each activation ``(tokens, channels)``, by its name.
        linear_ops: the linear operators that read each activation, by its name.
        massive: weights whose inputs have values so large that quantizing them costs the others
            their precision, even when smoothed and rotated (massive activations, Sun et al. 2024).
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
    format_of: FormatOf,
    spill: ArraySpill,
    *,
    fixed: Collection[str] = (),
) -> PreprocessReport:
    """Smooth and rotate ``model`` in place.

    Args:
        model: a float graph, whose linear layers are MatMuls.
        ties: verified after each pass.
        bundle: what the model is part of.
        model_path: the file ``model`` was read from, to run; its values have the same names.
        inputs: what to calibrate on.
        format_of: returns the format that a linear operator's weight will have.
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
    pending: deque[Future[_Decision | None]] = deque()
    try:
        with ThreadPoolExecutor(CORES) as threads:  # decides while the model runs on
            activations = collect_activations(bundle, model_path, list(linear_inputs), inputs)
            for name, tokens in activations:
                futures[name] = threads.submit(
                    _decide, linear_inputs[name], tokens, format_of, spill, name in smoothable
                )
                pending.append(futures[name])
                if len(pending) > _MAX_PENDING:
                    pending.popleft().result()
            results = {name: future.result() for name, future in futures.items()}
    except QuantizeError as error:
        if inputs.feeds:
            raise  # the caller's own
        logger.debug("%s: not calibrated", model_path, exc_info=True)
        return PreprocessReport(note=f"nothing: {summarize(error)}")
    decisions = {name: each for name, each in results.items() if each is not None}
    smooth = Smooth({n: each.scales for n, each in decisions.items() if each.scales is not None})
    run_passes(model, ties, [smooth])
    # smoothing renames what is gathered from an embedding, but not the weights that read it
    new_names = {_weight_name(each): name for name, each in find_linear_inputs(model).items()}
    rotated = [name for name, each in decisions.items() if each.block_size > 1]
    rotate = Rotate([new_names[_weight_name(linear_inputs[name])] for name in rotated])
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


def _weight_name(linear_input: LinearInput) -> str:
    return str(linear_input.linear_ops[0].weight.name)


@dataclass(frozen=True)
class _Decision:
    """What is done to an activation.

    Attributes:
        scales: divisors of its channels; ``None`` if they cannot be scaled.
        block_size: channels that are rotated together; 1 for no rotation.
        massive: names of the weights whose inputs stay massive.
        hessian: reads the Hessian of the transformed activation.
    """

    scales: Array | None
    block_size: int
    massive: Sequence[str]
    hessian: Callable[[], Array]

    def transform(self, tokens: Array) -> Array:
        """Smooth and rotate ``(tokens, channels)``."""
        scaled = np.array(tokens if self.scales is None else tokens / self.scales, np.float32)
        return scaled if self.block_size < 2 else rotate_blocks(scaled, hadamard(self.block_size))


def _decide(
    linear_input: LinearInput,
    tokens: Array,
    format_of: FormatOf,
    spill: ArraySpill,
    is_smoothable: bool,
) -> _Decision | None:
    """Decide what is done to an activation; ``None`` if it is not finite.

    Args:
        linear_input: the activation.
        tokens: its values ``(tokens, channels)``, which are overwritten.
        format_of: returns the format of a linear operator's weight.
        spill: where the Hessian is written.
        is_smoothable: whether its channels can be scaled at no cost.
    """
    magnitudes = np.sqrt(np.einsum("ij,ij->j", tokens, tokens) / len(tokens))
    if not np.isfinite(magnitudes).all():
        return None
    formats = [format_of(linear_op) for linear_op in linear_input.linear_ops]
    weights = [_sample_channels(linear_op) for linear_op in linear_input.linear_ops]
    scales = None
    if is_smoothable:
        strength = EMBEDDING_STRENGTH if linear_input.reads_embedding else STRENGTH
        scales = smoothing_scales(magnitudes, strength)
        tokens /= scales
        weights = [weight * scales for weight in weights]
    x = tokens[:: max(1, len(tokens) // _SAMPLED_TOKENS)].copy()
    is_free = find_value_projection(linear_input) is not None
    can_rotate = is_free or all(each.supports_rotation for each in formats)
    block_size = rotation_size(linear_input) if can_rotate else 1
    if block_size > 1:
        matrix = hadamard(block_size)
        rotated_x = rotate_blocks(x.copy(), matrix)
        rotated_weights = [rotate_blocks(weight.copy(), matrix) for weight in weights]
        limit = (1.0 if is_free else ROTATION_GAIN) * _output_error(x, weights, formats)
        if _output_error(rotated_x, rotated_weights, formats) < limit:
            x, weights = rotated_x, rotated_weights
            tokens = rotate_blocks(tokens, matrix)
        else:
            block_size = 1
    massive = [
        str(linear_op.weight.name)
        for linear_op, weight, each in zip(linear_input.linear_ops, weights, formats, strict=True)
        if _is_massive(x, weight, each)
    ]
    return _Decision(scales, block_size, massive, spill.put(hessian(tokens)))


def _sample_channels(linear_op: LinearOp) -> Array:
    """Return some output channels of a weight: ``(out, in)``."""
    weight = linear_op.read_weight()
    return np.array(weight[:: max(1, len(weight) // _SAMPLED_CHANNELS)], np.float32, order="C")


def _output_error(x: Array, weights: Sequence[Array], formats: Sequence[WeightFormat]) -> float:
    """Estimate the error of all linear operators that read ``x``."""
    total = 0.0
    for weight, each in zip(weights, formats, strict=True):
        spec = each.spec(x.shape[1])
        total += weight_error(x, weight, spec)
        total += float(activation_error(x, weight, spec, each.activations).mean())
    return total


def _is_massive(x: Array, weight: Array, weight_format: WeightFormat) -> bool:
    """Tell whether quantizing activations takes too much of a linear operator's output."""
    spec = weight_format.spec(x.shape[1])
    error = activation_error(x, weight, spec, weight_format.activations)
    return float((error / (np.square(x @ weight.T).sum(axis=1) + _TINY)).mean()) > MASSIVE
