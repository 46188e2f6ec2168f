"""Estimated errors are close to those measured by quantizing."""

from __future__ import annotations

import numpy as np
import pytest
from quantized_values import dequantized
from small_graphs import random

from edgetie.quantize.formats.weight_format import ScaleGranularity
from edgetie.quantize.preprocess.quantization_error import activation_error, weight_error
from edgetie.quantize.weights.affine import QuantSpec, round_to_nearest


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [None, 16])
def test_weight_error(bits: int, block: int | None) -> None:
    x, weight = random(200, 64), random(100, 64, seed=1)
    spec = QuantSpec(bits, block)
    error = dequantized(round_to_nearest(weight, spec), spec, 64) - weight
    measured = np.square(x @ error.T).sum(axis=1).mean()
    assert weight_error(x, weight, spec) == pytest.approx(measured, rel=0.4)


def quantized_activations(x: np.ndarray, granularity: ScaleGranularity) -> np.ndarray:
    groups = x.reshape(len(x), -1, 16) if granularity is ScaleGranularity.BLOCK else x
    axis = None if granularity is ScaleGranularity.TENSOR else -1
    scales = np.abs(groups).max(axis=axis, keepdims=True) / 127
    return (np.round(groups / scales) * scales).reshape(x.shape)


@pytest.mark.parametrize(
    "granularity", [ScaleGranularity.BLOCK, ScaleGranularity.TOKEN, ScaleGranularity.TENSOR]
)
def test_activation_error(granularity: ScaleGranularity) -> None:
    x, weight = random(300, 64), random(100, 64, seed=1)
    x[:, 5] *= 20
    error = quantized_activations(x, granularity) - x
    measured = np.square(error @ weight.T).sum(axis=1)
    estimate = activation_error(x, weight, QuantSpec(8, 16), granularity)
    assert estimate.shape == (300,)
    assert estimate.mean() == pytest.approx(measured.mean(), rel=0.4)


def test_float_activations_have_no_error() -> None:
    x, weight = random(3, 64), random(5, 64, seed=1)
    assert not activation_error(x, weight, QuantSpec(8, 16), ScaleGranularity.NONE).any()


def test_channels_that_do_not_fill_a_block() -> None:
    x, weight = random(4, 70), random(5, 70, seed=1)
    padded = [np.pad(array, [(0, 0), (0, 10)]) for array in (x, weight)]
    spec = QuantSpec(8, 16)
    assert weight_error(x, weight, spec) == pytest.approx(weight_error(*padded, spec))
