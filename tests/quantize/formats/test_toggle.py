"""One weight at a time is quantized, as an input chooses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from quantized_graphs import arrays, quantize
from small_graphs import SHAPE, graph, node, random, run

from edgetie.quantize.formats.matmul_integer import MatMulIntegerFormat
from edgetie.quantize.formats.matmul_nbits import MatMulNBitsFormat
from edgetie.quantize.formats.toggle import TOGGLE_INPUT, ToggleFormat
from edgetie.quantize.formats.weight_format import WeightFormat

X = random(2, 5, 64, seed=7)


def model_of() -> ir.Model:
    """Two weights, the second stored ``(out, in)``, and a bias."""
    return graph(
        [
            node("MatMul", ["x", "first"], ["a"]),
            node("Add", ["a", "bias"], ["b"]),
            node("Transpose", ["second"], ["t"], perm=[1, 0]),
            node("MatMul", ["b", "t"], ["y"]),
        ],
        {"first": random(64, 64), "second": random(64, 64, seed=1), "bias": random(64, seed=2)},
        shapes={"a": SHAPE, "b": SHAPE},
        opset=21,
    )


def toggled(quantized: WeightFormat) -> tuple[ir.Model, Any]:
    model = model_of()
    floats = {name: model.graph.initializers[name].const_value for name in ("first", "second")}
    toggle = ToggleFormat(quantized, list(floats), floats)  # type: ignore[arg-type]
    return model, quantize(model, toggle, MatMulNBitsFormat())


@pytest.mark.parametrize("quantized", [lambda: MatMulNBitsFormat(4), MatMulIntegerFormat])
def test_only_the_chosen_weight_is_quantized(quantized: Any) -> None:
    before = run(model_of(), x=X)
    model, step = toggled(quantized())
    assert step.changed == 2
    assert [value.name for value in model.graph.inputs] == ["x", TOGGLE_INPUT]
    assert [each.op_type for each in model.graph].count("If") == 2
    np.testing.assert_array_equal(run(model, x=X), before)  # by default none
    np.testing.assert_array_equal(run(model, x=X, **{TOGGLE_INPUT: np.array(-1)}), before)
    for index, name in enumerate(("first", "second")):
        alone = model_of()
        quantize(
            alone, quantized(), MatMulNBitsFormat(), excluded={"first", "second"} - {name},
            exact=["second"] if name == "second" else (),
        )  # fmt: skip
        result = run(model, x=X, **{TOGGLE_INPUT: np.array(index)})
        np.testing.assert_allclose(result, run(alone, x=X), rtol=1e-4, atol=1e-3)
        assert np.abs(result - before).max() > 1e-3


def test_float_and_quantized_weights_are_both_stored() -> None:
    model, _ = toggled(MatMulNBitsFormat())
    stored = arrays(model)
    assert {name for name, array in stored.items() if array.size >= 64 * 64} == {
        "first", "second", "first.float", "second.float",
    }  # fmt: skip
    assert stored["first"].dtype == np.uint8
    assert stored["first.float"].dtype == np.float32


def test_the_higher_precision_can_be_chosen_too() -> None:
    model = model_of()
    floats = {name: model.graph.initializers[name].const_value for name in ("first", "second")}
    toggle = ToggleFormat(MatMulNBitsFormat(4), list(floats), floats)  # type: ignore[arg-type]
    quantize(model, toggle, MatMulNBitsFormat(), higher_precision=["first"])
    sizes = {name: array.size for name, array in arrays(model).items()}
    assert (sizes["first"], sizes["second"]) == (64 * 64, 64 * 64 // 2)  # bytes of 8 and 4 bits
    assert ToggleFormat(MatMulIntegerFormat(), [], {}).higher_precision() is None


def test_other_questions_are_answered_by_the_other_format() -> None:
    quantized = MatMulNBitsFormat(4)
    toggle = ToggleFormat(quantized, [], {})
    assert (toggle.spec(64), toggle.opset) == (quantized.spec(64), quantized.opset)
    one_axis = ir.Value(name="x", shape=ir.Shape([64]))
    assert not ToggleFormat(MatMulIntegerFormat(), [], {}).supports_input(one_axis)
    assert toggle.supports_input(one_axis)
