"""GPTQ: errors that later columns compensate."""

from __future__ import annotations

import numpy as np
import pytest
from quantized_values import dequantized

from edgetie.quantize.weights.affine import QuantSpec, choose_block, round_to_nearest
from edgetie.quantize.weights.gptq import column_groups, gptq_quantize, hessian, split_columns


@pytest.mark.parametrize("columns", [64, 70, 448, 832])
@pytest.mark.parametrize("kind", ["blocks", "rows", "four bits", "four bits of both signs"])
def test_compensation_lowers_the_error_of_the_output(columns: int, kind: str) -> None:
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


def test_column_groups_are_whole_blocks_and_hold_every_column() -> None:
    for columns in (16, 70, 576, 1536, 2048, 8192):
        count, width = column_groups(columns)
        assert count * width >= columns
        assert width % choose_block(columns) == 0
        assert width <= 768


def test_inputs_that_are_always_zero_round_to_nearest() -> None:
    rows = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    rounded = gptq_quantize(rows, QuantSpec(8, 64), np.zeros((1, 64, 64), np.float32))
    expected = round_to_nearest(rows, QuantSpec(8, 64))
    np.testing.assert_allclose(rounded.scales, expected.scales, rtol=1e-6)
    errors = np.abs(dequantized(rounded, QuantSpec(8, 64), 64) - rows)
    assert errors.max() <= expected.scales.max() * 0.501


def test_the_hessian_is_that_of_each_group() -> None:
    x = np.random.default_rng(0).normal(size=(30, 1600)).astype(np.float32)
    groups, (count, width) = split_columns(x), column_groups(1600)
    assert groups.shape == (count, 30, width)
    assert (count, width) == (3, 576)
    np.testing.assert_array_equal(groups[1], x[:, width : 2 * width])
    assert not groups[2, :, 1600 - 2 * width :].any()  # padding
    for index, each in enumerate(hessian(x)):
        np.testing.assert_allclose(each, groups[index].T @ groups[index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [QuantSpec(8), QuantSpec(4, 32, asymmetric=True)])
def test_a_transposed_weight_gives_the_same(spec: QuantSpec) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(40, 96)).astype(np.float32)
    x = rng.normal(size=(200, 96)).astype(np.float32)
    direct = gptq_quantize(weight, spec, hessian(x))
    transposed = gptq_quantize(weight.T.copy(), spec, hessian(x), transposed=True)
    np.testing.assert_array_equal(direct.values, transposed.values)
    np.testing.assert_array_equal(direct.scales, transposed.scales)


def test_many_output_channels_are_shared_out_to_threads() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4100, 32)).astype(np.float32)
    x = rng.normal(size=(100, 32)).astype(np.float32)
    whole = gptq_quantize(weight, QuantSpec(8), hessian(x))
    part = gptq_quantize(weight[4000:], QuantSpec(8), hessian(x))
    np.testing.assert_array_equal(whole.values[4000:], part.values)
