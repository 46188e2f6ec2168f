"""Ranges of activations for scales that are fixed beforehand."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgetie.bundle.bundle import Bundle
from edgetie.quantize.calibration.layerwise_run import Input, as_rows, record
from edgetie.quantize.formats.qdq import Range
from edgetie.quantize.weights.affine import require_finite

_BINS = 2048
_PERCENTILE = 99.999
_CODES = 128  # of the positive half, as entropy compares distributions

Array = np.ndarray[Any, Any]


def find_activation_ranges(
    bundle: Bundle,
    model_path: Path,
    changes: Mapping[str, Callable[[Array], Array]],
    given: Input,
    calibrator: str,
    products: Mapping[str, Mapping[str, Callable[[], Array]]],
) -> dict[str, Range]:
    """The range of each activation, and of each product, that codes should span.

    Args:
        bundle: what the model is part of.
        model_path: the model.
        changes: what is done to each activation, by its name, before it is rounded.
        given: what to run it on.
        calibrator: one of :data:`edgetie.targets.CALIBRATORS`: ``minmax``, the whole range;
            ``percentile``, all but the outermost 0.001 %; or ``entropy``, the range whose codes
            tell most about the values (onnxruntime.quantization's histograms for both).
        products: makes the matrices ``(rows, channels)`` that an activation is multiplied with, by
            their names; products have their whole range.

    Raises:
        QuantizeError: if the model cannot be run on the CPU, or a matrix holds NaN or infinity.
    """
    found: dict[str, Range] = {}
    collectors: dict[str, Any] = {}
    for name, values, last in record(bundle, model_path, list(changes), given):
        rows = changes[name](as_rows(values))
        found[name] = _widened(found.get(name), rows)
        for matrix, make in products.get(name, {}).items():
            weights = make()
            require_finite(weights, matrix)
            found[matrix] = _widened(found.get(matrix), rows @ weights.T)
        if calibrator == "minmax":
            continue
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            collectors.setdefault(name, _collector(calibrator)).collect({name: rows})
            if last:
                result = collectors.pop(name).compute_collection_result()[name]
                low, high = (float(np.asarray(end).item()) for end in result[:2])
                found[name] = max(low, found[name][0]), min(high, found[name][1])
    return found


def _widened(known: Range | None, values: Array) -> Range:
    low, high = float(values.min()), float(values.max())
    return (low, high) if known is None else (min(known[0], low), max(known[1], high))


def _collector(method: str) -> Any:
    from onnxruntime.quantization.calibrate import HistogramCollector

    return HistogramCollector(
        method=method,
        symmetric=False,
        num_bins=_BINS,
        num_quantized_bins=_CODES,
        percentile=_PERCENTILE,
        scenario="same",
    )
