"""Which operators cannot be read as operators on rows or columns, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir.passes.common as common
import pytest
from computed_tables import LINEAR, ROWS, TABLE, WIDTH, Computed, moved, one
from onnx import TensorProto
from small_graphs import graph, leave, node, random

from edgetie.passes.move_table_operators import MoveTableOperators


@pytest.mark.parametrize(
    ("computed", "reason"),
    [
        (one("Pad", np.array([1, 0, 0, 0]), np.float32(2)), "Pad with other values than zeros"),
        (
            Computed(
                [node("ScatterND", ["table", "places", "numbers"], ["result"])],
                {"places": np.array([[0, 1]]), "numbers": random(1)},
            ),
            "ScatterND of other than rows",
        ),
        (one("CumSum", np.array(1)), "CumSum before a look-up"),
        (one("Softmax", axis=0), "Softmax before a look-up"),
    ],
    ids=["Pad", "ScatterND", "CumSum", "Softmax of columns"],
)
def test_reasons(computed: Computed, reason: str) -> None:
    use: list[Any] = [*computed.nodes, node("Gather", ["result", "ids"], ["y"])]
    types = {"ids": TensorProto.INT64}
    model = graph(use, {"table": TABLE} | computed.constants, {"ids": [3]}, [3, WIDTH], types=types)
    model.graph.outputs[0].shape = None
    common.ShapeInferencePass()(model)
    step = MoveTableOperators()
    leave(model, step)
    assert step.skipped == [f"table: {reason}"]


def test_a_table_with_an_axis_of_size_1() -> None:
    computed = Computed(
        [
            node("Unsqueeze", ["table", "first"], ["batch"]),
            node("Mul", ["batch", "factors"], ["scaled"]),
            node("Transpose", ["scaled"], ["result"], perm=[0, 2, 1]),
        ],
        {"first": np.array([0]), "factors": random(ROWS, 1, seed=2)},
    )
    x = random(2, 3, WIDTH, seed=9)
    moved(computed, [node("MatMul", ["x", "result"], ["y"])], {"x": [2, 3, WIDTH]}, x=x)


@pytest.mark.parametrize("opset", [11, 13, 18, 23])
@pytest.mark.parametrize("name", ["Sub of rows", "Slice of rows", "Concat of rows", "Pad"])
def test_opsets(name: str, opset: int) -> None:
    computed = LINEAR[name]
    computed = Computed(computed.nodes, computed.constants, computed.shape, opset)
    ids = np.array([[0, 1, -1]])
    moved(computed, [node("Gather", ["result", "ids"], ["y"])], {"ids": [1, 3]}, ids=ids)
    use = [node("Transpose", ["result"], ["t"]), node("MatMul", ["x", "t"], ["y"])]
    x = random(2, 3, WIDTH, seed=9)
    moved(computed, use, {"x": list(x.shape)}, x=x)
