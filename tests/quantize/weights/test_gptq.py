"""GPTQ: errors that later columns compensate."""

from __future__ import annotations

import numpy as np
import pytest
from quantized_values import dequantized

from edgetie.quantize.weights.affine import QuantSpec, choose_block, round_to_nearest
from edgetie.quantize.weights.gptq import column_groups, gptq_quantize, hessian


@pytest.mark.parametrize("columns", [64, 70, 448, 576, 1536])
@pytest.mark.parametrize("kind", ["blocks", "rows", "four bits", "four bits of both signs"])
def test_compensated_rounding_errs_less_in_the_product(columns: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(columns // 4, columns)).astype(np.float32)
    x = (rng.normal(size=(2000, columns // 4)) @ mixed).astype(np.float32)  # correlated channels
    rows = rng.normal(size=(50, columns)).astype(np.float32)
    block = choose_block(columns, 64 if kind == "blocks" else 32)
    spec = {
        "blocks": QuantSpec(8, block),
        "rows": QuantSpec(8),
        "four bits": QuantSpec(4, block, asymmetric=True, clip=True),
        "four bits of both signs": QuantSpec(4, block),
    }[kind]
    plain = dequantized(round_to_nearest(rows, spec), spec, columns)
    rounded = gptq_quantize(rows, spec, hessian(x))
    better = dequantized(rounded, spec, columns)
    assert np.linalg.norm(x @ (rows - better).T) < 0.9 * np.linalg.norm(x @ (rows - plain).T)
    # every weight stays near its own value
    assert np.abs(rows - better).max() < 8 * rounded.scales.max()


def test_regions_are_whole_blocks_and_hold_every_column() -> None:
    for columns in (16, 70, 576, 1536, 2048, 8192):
        count, width = column_groups(columns)
        assert count * width >= columns
        assert width % choose_block(columns) == 0
        assert width <= 768


def test_what_is_never_active_is_rounded_to_nearest() -> None:
    rows = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    rounded = gptq_quantize(rows, QuantSpec(8, 64), np.zeros((1, 64, 64), np.float32))
    expected = round_to_nearest(rows, QuantSpec(8, 64))
    np.testing.assert_allclose(rounded.scales, expected.scales, rtol=1e-6)
    errors = np.abs(dequantized(rounded, QuantSpec(8, 64), 64) - rows)
    assert errors.max() <= expected.scales.max() * 0.501
