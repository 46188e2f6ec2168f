"""bfloat16 operators run in float32 and round their results."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto
from small_graphs import SHAPE, WIDTH, X, graph, leave, node, random, run

from edgetie.passes.widen_bfloat16 import WidenBfloat16

NARROW = TensorProto.BFLOAT16


def test_a_product_of_bfloat16_runs_and_is_rounded() -> None:
    weight = random(WIDTH)
    model = graph(
        [
            node("Cast", ["x"], ["a"], to=NARROW),
            node("Cast", ["w"], ["b"], to=NARROW),
            node("Mul", ["a", "b"], ["m"]),
            node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
        ],
        {"w": weight},
        shapes={"a": SHAPE, "b": [WIDTH], "m": SHAPE},
        types={"a": NARROW, "b": NARROW, "m": NARROW},
    )
    step = WidenBfloat16()
    step(model)
    assert step.changed == 1
    assert len(model.graph.initializers) == 1
    multiply = next(n for n in model.graph if n.op_type == "Mul")
    types = {value.dtype for value in (*multiply.inputs, *multiply.outputs)}
    assert types == {ir.DataType.FLOAT}
    narrow = ir.DataType.BFLOAT16.numpy()
    expected = X.astype(narrow).astype(np.float32) * weight.astype(narrow).astype(np.float32)
    np.testing.assert_array_equal(run(model, x=X), expected.astype(narrow).astype(np.float32))


def test_float32_stays() -> None:
    model = graph([node("Mul", ["x", "x"], ["y"])], {})
    leave(model, WidenBfloat16())
