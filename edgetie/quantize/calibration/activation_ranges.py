"""Ranges of activations, from which static scales are computed."""

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgetie.bundle.bundle import Bundle
from edgetie.quantize.calibration.layerwise_run import Array, CalibrationInput, run_layerwise
from edgetie.quantize.formats.qdq import Range
from edgetie.quantize.weights.affine import require_finite


def find_activation_ranges(
    bundle: Bundle,
    model_path: Path,
    transforms: Mapping[str, Callable[[Array], Array]],
    inputs: CalibrationInput,
    calibrator: str,
    weights: Mapping[str, Mapping[str, Callable[[], Array]]],
) -> dict[str, Range]:
    """Find the range of each activation by its name, and of each linear output by its weight's.

    Args:
        bundle: what the model is part of.
        model_path: the model.
        transforms: what is done to each activation ``(tokens, channels)`` before it is quantized.
        inputs: what to run it on.
        calibrator: ``minmax``, the whole range; ``percentile``, all but the outermost 0.001 %; or
            ``entropy``, the range whose quantized values tell most about the values.
        weights: of each activation, makers of the weights ``(out, in)`` that it is multiplied with,
            by their names. Outputs have their whole range.

    Raises:
        QuantizeError: if the model cannot be run on the CPU, or a weight holds NaN or infinity.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    ranges: dict[str, Range] = {}
    collectors: dict[str, HistogramCollector] = {}
    for activation in run_layerwise(bundle, model_path, list(transforms), inputs):
        name, tokens = activation.name, transforms[activation.name](activation.tokens)
        ranges[name] = _widen(ranges.get(name), tokens)
        for weight_name, make_weight in weights.get(name, {}).items():
            weight = make_weight()
            require_finite(weight, weight_name)
            ranges[weight_name] = _widen(ranges.get(weight_name), tokens @ weight.T)
        if calibrator == "minmax":
            continue
        with contextlib.redirect_stdout(io.StringIO()):  # the collector prints
            # method, symmetric, bins, bins of a quantized distribution, percentile, scenario
            collector = HistogramCollector(calibrator, False, 2048, 128, 99.999, "same")
            collectors.setdefault(name, collector).collect({name: tokens})
            if activation.is_last:
                result = collectors.pop(name).compute_collection_result()[name]
                low, high = (float(np.asarray(end).item()) for end in result[:2])
                ranges[name] = max(low, ranges[name][0]), min(high, ranges[name][1])
    return ranges


def _widen(range_: Range | None, values: Array) -> Range:
    low, high = float(values.min()), float(values.max())
    return (low, high) if range_ is None else (min(range_[0], low), max(range_[1], high))
