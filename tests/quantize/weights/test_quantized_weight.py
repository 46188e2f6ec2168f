"""The initializers of a quantized weight, in whatever order they are read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import graph, node, random

from edgetie.errors import QuantizeError
from edgetie.quantize.weights.affine import QuantSpec, round_to_nearest
from edgetie.quantize.weights.gptq import gptq_quantize, hessian
from edgetie.quantize.weights.quantized_weight import (
    Part,
    QuantizedWeight,
    quantize_in_background,
)

W = random(64, 96)
SPEC = QuantSpec(8, 32, asymmetric=True)


def quantized_weight(
    w: np.ndarray = W, spec: QuantSpec = SPEC, *, transposed: bool = True, **options: Any
) -> QuantizedWeight:
    model = graph([node("MatMul", ["x", "w"], ["y"])], {"other": random(64, 64), "w": w})
    value = model.graph.initializers["w"]
    return QuantizedWeight(model.graph, value, spec, transposed=transposed, **options)


def add_parts(weight: QuantizedWeight) -> dict[str, ir.Value]:
    shape, blocks = (weight.out_channels, weight.in_channels), weight.block_count
    weight.needs_sums = True
    return {
        "values": weight.add(Part.VALUES, ir.DataType.UINT8, shape, weight.read_values),
        "scales": weight.add_scales(blocks, factor=2.0),
        "zero_points": weight.add(
            Part.ZERO_POINTS,
            ir.DataType.UINT8,
            (shape[0], blocks),
            lambda: weight.parameters().zero_points,
        ),
        "sums": weight.add(Part.OFFSETS, ir.DataType.FLOAT, shape[:1], weight.sums),
    }


def array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


@pytest.mark.parametrize(
    "order", itertools.permutations(["values", "scales", "zero_points", "sums"])
)
def test_parts_are_the_same_in_any_order(order: tuple[str, ...]) -> None:
    expected = round_to_nearest(W.T, SPEC)
    values = expected.values
    arrays = {
        "values": values,
        "scales": expected.scales * 2,
        "zero_points": expected.zero_points,
        "sums": values.sum(axis=1, dtype=np.float32) - 128 * 64,
    }
    parts = add_parts(quantized_weight())
    for name in order:
        np.testing.assert_array_equal(array(parts[name]), arrays[name])
    np.testing.assert_array_equal(array(parts["values"]), values)  # released and computed again


@pytest.mark.parametrize("transposed", [False, True])
def test_shapes_and_names_follow_the_orientation(transposed: bool) -> None:
    weight = quantized_weight(transposed=transposed)
    shape = (96, 64) if transposed else (64, 96)
    assert (weight.out_channels, weight.in_channels) == shape
    assert weight.block_count == shape[1] // 32
    scales = weight.add_scales(weight.block_count)
    assert scales.name == ("w.T.scales" if transposed else "w.scales")
    assert weight.add_scales(weight.block_count) is scales
    assert set(weight.graph.initializers) == {"other", "w", scales.name}


def test_aliases_share_bytes() -> None:
    weight = quantized_weight()
    values = add_parts(weight)["values"]
    alias = weight.add_alias(Part.SCALES_FOR_GATHER, values, (96, 2, 32))
    copy = weight.add_alias(Part.VALUES, values, (96, 64), copy=3)
    assert weight.aliases == {alias: values, copy: values}
    assert (alias.name, copy.name) == ("w.T.scales.gather", "w.T.values.3")
    np.testing.assert_array_equal(array(alias), array(values).reshape(96, 2, 32))


def test_values_replace_the_weight_by_name_and_come_first() -> None:
    weight = quantized_weight()
    parts = add_parts(weight)
    weight.take_name()
    names = ["other", "w", "w.T.scales", "w.T.zero_points", "w.T.offsets"]
    assert list(weight.graph.initializers) == names
    assert weight.values is parts["values"] is weight.graph.initializers["w"]
    assert weight.values.dtype == ir.DataType.UINT8


def test_a_hessian_asks_for_gptq() -> None:
    x = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    weight = quantized_weight(hessian=lambda: hessian(x))
    expected = gptq_quantize(W.T, SPEC, hessian(x))
    np.testing.assert_array_equal(weight.read_values(), expected.values)
    np.testing.assert_array_equal(weight.parameters().scales, expected.scales)
    assert (expected.values != round_to_nearest(W.T, SPEC).values).any()


def test_the_weight_that_is_not_finite_is_named() -> None:
    w = W.copy()
    w[3, 7] = np.nan
    with pytest.raises(QuantizeError, match="w: NaN or infinity in output channel 7"):
        quantized_weight(w).read_values()


def test_later_weights_are_quantized_while_earlier_ones_are_read() -> None:
    calls: list[int] = []

    def recorded(index: int) -> Callable[[], np.ndarray]:
        def compute() -> np.ndarray:
            calls.append(index)
            return np.zeros((1, 64, 64), np.float32)

        return compute

    weights = [quantized_weight(hessian=recorded(index)) for index in range(4)]
    quantize_in_background(weights)
    expected = quantized_weight().read_values()
    for weight in weights:
        np.testing.assert_allclose(weight.read_values(), expected, atol=1)
        weight.parameters()
    assert sorted(calls) == [0, 1, 2, 3]
