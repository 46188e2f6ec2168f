"""Conversion to float16."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from quantized_graphs import IDS, TOKENS, arrays, quantize, relative_error, tied, weights
from small_graphs import SHAPE, X, graph, node, random, run

from edgetie.errors import QuantizeError
from edgetie.quantize.formats.float16 import to_float16
from edgetie.quantize.formats.matmul_nbits import MatMulNBitsFormat


def test_a_tied_weight_stays_one_and_is_cast_when_it_is_read() -> None:
    embedding = weights(TOKENS, 64)
    model = tied(embedding)
    before = run(model, ids=IDS)
    converted = to_float16(model)
    value = converted.graph.initializers["embedding"]
    assert isinstance(value.const_value, ir.LazyTensor)
    assert {value.dtype, converted.graph.outputs[0].dtype} == {ir.DataType.FLOAT16}
    np.testing.assert_array_equal(value.const_value.numpy(), embedding.astype(np.float16))
    assert [name for name, array in arrays(converted).items() if array.size > 1000] == ["embedding"]
    assert relative_error(run(converted, ids=IDS).astype(np.float32), before) < 2e-3


def test_quantized_values_stay_and_keep_their_order() -> None:
    model = tied(weights(TOKENS, 64))
    before = run(model, ids=IDS)
    quantize(model, MatMulNBitsFormat(), MatMulNBitsFormat())
    order, stored = list(model.graph.initializers), arrays(model)
    converted = to_float16(model)
    names = [name for name in converted.graph.initializers if name in order]
    assert names == [name for name in order if name in converted.graph.initializers]
    np.testing.assert_array_equal(arrays(converted)["embedding"], stored["embedding"])
    assert arrays(converted)["embedding.scales"].dtype == np.float16
    assert relative_error(run(converted, ids=IDS).astype(np.float32), before) < 0.02


def test_sines_and_what_they_read_are_computed_in_float32() -> None:
    nodes = [
        node("Mul", ["x", "frequencies"], ["angles"]),
        node("Sin", ["angles"], ["sines"]),
        node("MatMul", ["sines", "w"], ["y"]),
    ]
    constants = {"frequencies": random(64), "w": random(64, 64)}
    model = graph(nodes, constants, shapes={"angles": SHAPE, "sines": SHAPE})
    before = run(model, x=X)
    converted = to_float16(model)
    dtypes = {each.op_type: each.inputs[0].dtype for each in converted.graph}  # type: ignore[union-attr]
    assert (dtypes["Mul"], dtypes["Sin"]) == (ir.DataType.FLOAT, ir.DataType.FLOAT)
    assert dtypes["MatMul"] == ir.DataType.FLOAT16
    assert relative_error(run(converted, x=X.astype(np.float16)).astype(np.float32), before) < 5e-3


def scaled(constant: np.ndarray) -> np.ndarray:
    model = graph(
        [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "c"], ["y"])],
        {"w": random(64, 64), "c": constant},
    )
    return arrays(to_float16(model))["c"]


def test_infinity_of_masks_becomes_the_largest_and_tiny_constants_the_smallest() -> None:
    minimum = np.finfo(np.float32).min
    np.testing.assert_array_equal(scaled(np.array([0.0, minimum, 1.0], np.float32)), [0, -65504, 1])
    np.testing.assert_array_equal(scaled(np.float32([-np.inf])), [-np.inf])
    assert scaled(np.float32([1e-12])) == np.float16(2.0**-24)
    assert not scaled(np.zeros((64, 64), np.float32)).any()
    np.testing.assert_array_equal(scaled(np.full((64, 64), minimum)), np.full((64, 64), -65504))


@pytest.mark.parametrize("value", [1e6, np.nan, np.inf])
def test_a_weight_that_is_too_large_is_named(value: float) -> None:
    w = random(64, 64)
    w[3, 4] = value
    with pytest.raises(QuantizeError, match="c: a value is too large for float16"):
        scaled(w)


def test_a_model_without_float32_weights_is_refused() -> None:
    model = graph([node("Relu", ["x"], ["y"])], {})
    with pytest.raises(QuantizeError, match="no float32 weight"):
        to_float16(model)
