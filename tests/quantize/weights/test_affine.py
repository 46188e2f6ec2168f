"""Scales, zero points and rounding to nearest."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from quantized_values import dequantized
from small_graphs import graph, node, random, run

from edgetie.errors import QuantizeError
from edgetie.quantize.weights.affine import (
    QuantSpec,
    choose_block,
    require_finite,
    round_to_nearest,
)


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_nearest_is_within_half_a_step(block: int | None, asymmetric: bool) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 48)).astype(np.float32)
    rows[3] = 0  # a row of zeros
    rows[5] = np.abs(rows[5])
    spec = QuantSpec(8, block, asymmetric=asymmetric)
    rounded = round_to_nearest(rows, spec)
    errors = np.abs(dequantized(rounded, spec, 48) - rows).reshape(40, spec.block_count(48), -1)
    assert (errors <= 0.501 * rounded.scales[..., None]).all()
    assert (errors[3] == 0).all()


def test_zero_points_lower_the_squared_error() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    errors = [
        np.square(dequantized(round_to_nearest(rows, spec), spec, 64) - rows).sum()
        for spec in (QuantSpec(8, 64), QuantSpec(8, 64, asymmetric=True))
    ]
    assert errors[1] < 0.87 * errors[0]


def test_clipping_lowers_the_squared_error() -> None:
    rows = np.random.default_rng(0).standard_t(3, size=(200, 64)).astype(np.float32)
    errors = [
        np.square(dequantized(round_to_nearest(rows, spec), spec, 64) - rows).sum()
        for spec in (QuantSpec(4, 32), QuantSpec(4, 32, clip=True))
    ]
    assert errors[1] < 0.97 * errors[0]


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_values_are_those_of_quantize_linear(block: int | None, asymmetric: bool) -> None:
    weight = random(20, 64)
    spec = QuantSpec(8, block, asymmetric=asymmetric)
    quantized = round_to_nearest(weight, spec)
    blocks = weight.reshape(-1, block or 64)
    model = graph(
        [node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=0)],
        {"s": quantized.scales.reshape(-1), "z": quantized.zero_points.reshape(-1)},
        {"x": [*blocks.shape]},
        [*blocks.shape],
        types={"y": TensorProto.UINT8},
    )
    np.testing.assert_array_equal(run(model, x=blocks).reshape(20, 64), quantized.values)


def test_rows_are_padded_with_the_zero_point() -> None:
    spec = QuantSpec(4, 32, asymmetric=True, clip=True)
    quantized = round_to_nearest(random(6, 40), spec)
    assert quantized.values.shape == (6, 64)
    np.testing.assert_array_equal(
        quantized.values[:, 40:], np.repeat(quantized.zero_points[:, 1:], 24, axis=1)
    )
    assert quantized.values.max() <= 15


def test_many_rows_are_quantized_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, spec = random(50, 64), QuantSpec(8, 32, asymmetric=True)
    whole = round_to_nearest(weight, spec)
    monkeypatch.setattr("edgetie.quantize.weights.affine._SCRATCH_ELEMENTS", 64 * 7)
    parts = round_to_nearest(weight, spec)
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.scales, whole.scales)


@pytest.mark.parametrize(
    ("in_channels", "largest", "block"),
    [(576, 64, 64), (576, 32, 32), (70, 64, 16), (96, 64, 32), (8, 64, 16), (100, 32, 16)],
)
def test_the_block_pads_least(in_channels: int, largest: int, block: int) -> None:
    assert choose_block(in_channels, largest) == block


def test_parameters_broadcast_along_an_axis() -> None:
    values = random(3, 4, 5)
    scale, zero_point = QuantSpec().fit(values, axis=1)
    assert (zero_point == 128).all()
    assert scale.shape == (3, 1, 5)
    scale, zero_point = QuantSpec(asymmetric=True).fit(values, axis=1)
    assert scale.shape == zero_point.shape == (3, 1, 5)
    assert (np.abs(values / scale + zero_point - 127.5) <= 128).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    weight = random(6, 8)
    require_finite(weight, "w")
    require_finite(np.full((2, 2), 3e38, np.float32), "large")
    weight[4, 2] = value
    with pytest.raises(QuantizeError, match="w: NaN or infinity in output channel 4"):
        require_finite(weight, "w")
