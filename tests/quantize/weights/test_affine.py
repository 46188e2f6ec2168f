"""Scales, zero points and rounding to nearest."""

from __future__ import annotations

import numpy as np
import pytest
from quantized_values import dequantized

from edgetie.quantize.weights.affine import QuantSpec, round_to_nearest


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
