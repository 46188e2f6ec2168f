"""Operators between a weight and its uses move to the other side of these."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import WIDTH, graph, leave, node, random, rewrite, run

from edgetie.passes.base import run_passes
from edgetie.passes.move_table_operators import MoveTableOperators

ROWS = 96
TABLE = random(ROWS, WIDTH)
IDS = np.array([[3, 0, 95], [7, 7, 1]])
COLUMNS, FACTORS = random(WIDTH, seed=1), random(ROWS, 1, seed=2)


def tied(nodes: list[Any], table: np.ndarray = TABLE, **constants: Any) -> ir.Model:
    """``y`` of the looked-up rows ``x``; ``scaled`` is computed from the table."""
    shapes = {
        "x": [2, 3, WIDTH], "scaled": [ROWS, WIDTH], "t": [WIDTH, ROWS], "x2": [6, WIDTH],
        "turned": list(table.shape[::-1]),
    }  # fmt: skip
    return graph(
        nodes,
        {"table": table} | constants,
        {"ids": [2, 3]},
        [2, 3, ROWS],
        shapes,
        {"ids": TensorProto.INT64},
    )


def readers(model: ir.Model) -> list[str]:
    """The operators that read the table, or its transpose."""
    users = [user for user, _ in model.graph.initializers["table"].uses()]
    turned = [user for n in users if n.op_type == "Transpose" for user, _ in n.outputs[0].uses()]
    return sorted(n.op_type for n in [*users, *turned] if n.op_type != "Transpose")


LOOKUP = node("Gather", ["table", "ids"], ["x"])
HEAD = [
    node("Transpose", ["scaled"], ["t"], perm=[1, 0]),
    node("MatMul", ["x", "t"], ["y"]),
]


@pytest.mark.parametrize(
    "factor", [np.float32(2), COLUMNS, FACTORS], ids=["one", "columns", "rows"]
)
@pytest.mark.parametrize("at", ["table", "scaled"])
def test_a_factor_of_either_use(factor: np.ndarray, at: str) -> None:
    other = "scaled" if at == "table" else "table"
    nodes = [
        node("Mul", ["table", "factor"], ["scaled"]),
        node("Gather", [at, "ids"], ["x"]),
        node("Transpose", [other], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["y"]),
    ]
    model = tied(nodes, factor=factor)
    assert rewrite(model, MoveTableOperators(), ids=IDS)["Mul"] == 1
    assert readers(model) == ["Gather", "MatMul"]


@pytest.mark.parametrize("shape", [[], [1, 1], [WIDTH], [ROWS, 1]], ids=str)
@pytest.mark.parametrize("at", ["table", "scaled"])
def test_a_factor_that_is_an_input(shape: list[int], at: str) -> None:
    other = "scaled" if at == "table" else "table"
    nodes = [
        node("Abs", ["factor"], ["positive"]),
        node("Div", ["table", "positive"], ["scaled"]),
        node("Gather", [at, "ids"], ["x"]),
        node("Transpose", [other], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["y"]),
    ]
    model = graph(
        nodes,
        {"table": TABLE},
        {"ids": [2, 3], "factor": shape},
        [2, 3, ROWS],
        {"x": [2, 3, WIDTH], "positive": shape, "scaled": [ROWS, WIDTH], "t": [WIDTH, ROWS]},
        {"ids": TensorProto.INT64},
    )
    factor = np.random.default_rng(3).uniform(0.5, 2, shape).astype(np.float32)
    rewrite(model, MoveTableOperators(), ids=IDS, factor=factor)
    assert readers(model) == ["Gather", "MatMul"]


def test_an_activation_that_a_table_is_added_to_stays() -> None:
    """It is an activation for the weight that multiplies with it."""
    nodes = [node("Add", ["table", "bias"], ["shifted"]), node("MatMul", ["shifted", "w"], ["y"])]
    constants = {"table": TABLE, "w": random(WIDTH, WIDTH, seed=5)}
    shapes = {"shifted": [ROWS, WIDTH]}
    model = graph(nodes, constants, {"bias": [1, WIDTH]}, [ROWS, WIDTH], shapes)
    leave(model, MoveTableOperators())


def test_the_result_keeps_its_name() -> None:
    """Calibration finds activations by their name."""
    nodes = [
        node("Mul", ["table", "factor"], ["scaled"]),
        node("Gather", ["scaled", "ids"], ["x"]),
        node("Transpose", ["table"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["y"]),
    ]
    model = tied(nodes, factor=COLUMNS)
    rewrite(model, MoveTableOperators(), ids=IDS)
    product = next(n for n in model.graph if n.op_type == "MatMul")
    assert product.inputs[0].name == "x"
    assert product.inputs[0].producer().op_type == "Mul"


def test_a_gemm_of_a_computed_table() -> None:
    nodes = [
        LOOKUP,
        node("Div", ["table", "factor"], ["scaled"]),
        node("Reshape", ["x", "flat"], ["x2"]),
        node("Gemm", ["x2", "scaled", "offsets"], ["y2"], transB=1, alpha=2.0),
        node("Reshape", ["y2", "whole"], ["y"]),
    ]
    model = tied(
        nodes, factor=COLUMNS, offsets=random(ROWS), flat=np.array([-1, WIDTH]),
        whole=np.array([2, 3, ROWS]),
    )  # fmt: skip
    rewrite(model, MoveTableOperators(), ids=IDS)
    assert readers(model) == ["Gather", "MatMul"]


@pytest.mark.parametrize("gather", ["rows of the transpose", "columns"])
def test_a_table_that_is_looked_up_is_stored_by_rows(gather: str) -> None:
    nodes = [
        node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        node("Gather", ["turned", "ids"], ["x"]),
    ]
    if gather == "columns":
        nodes = [
            node("Gather", ["table", "ids"], ["columns"], axis=1),
            node("Transpose", ["columns"], ["x"], perm=[1, 2, 0]),
        ]
    nodes.append(node("MatMul", ["x", "table"], ["y"]))
    model = tied(nodes, np.ascontiguousarray(TABLE.T))
    rewrite(model, MoveTableOperators(), ids=IDS)
    np.testing.assert_array_equal(model.graph.initializers["table"].const_value.numpy(), TABLE)
    assert readers(model) == ["Gather", "MatMul"]


def test_a_table_that_other_models_read_keeps_its_layout() -> None:
    nodes = [
        node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        node("Gather", ["turned", "ids"], ["x"]),
        node("MatMul", ["x", "table"], ["y"]),
    ]
    model = tied(nodes, np.ascontiguousarray(TABLE.T))
    before = run(model, ids=IDS)
    run_passes(model, [], [MoveTableOperators(["table"])])
    np.testing.assert_allclose(run(model, ids=IDS), before, rtol=1e-5)
    assert model.graph.initializers["table"].shape == ir.Shape([WIDTH, ROWS])


def test_what_cannot_move_is_named() -> None:
    model = tied([LOOKUP, node("Tanh", ["table"], ["scaled"]), *HEAD])
    step = MoveTableOperators()
    leave(model, step)
    assert step.skipped == ["table: Tanh before a product"]


def test_nothing_is_left_of_what_cannot_move() -> None:
    nodes = [
        LOOKUP,
        node("Tanh", ["table"], ["bounded"]),
        node("Mul", ["table", "factor"], ["other"]),
        node("Add", ["other", "bounded"], ["scaled"]),
        *HEAD,
    ]
    model, step = tied(nodes, factor=COLUMNS), MoveTableOperators()
    for name in ("bounded", "other"):
        value = next(v for n in model.graph for v in n.outputs if v.name == name)
        value.shape, value.type = ir.Shape([ROWS, WIDTH]), ir.TensorType(ir.DataType.FLOAT)
    leave(model, step)
    assert step.skipped
    assert all(user.graph is model.graph for user, _ in model.graph.initializers["table"].uses())


def test_uses_of_the_table_itself_stay() -> None:
    nodes = [LOOKUP, node("Transpose", ["table"], ["t"], perm=[1, 0]), HEAD[1]]
    leave(tied(nodes), MoveTableOperators())


def test_tables_of_angles_stay() -> None:
    """Those are computed from vectors, and once is enough."""
    nodes = [
        node("Mul", ["places", "frequencies"], ["angles"]),
        node("Cos", ["angles"], ["table"]),
        node("Gather", ["table", "ids"], ["x"]),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    constants = {
        "places": np.arange(2048, dtype=np.float32)[:, None],
        "frequencies": random(1, WIDTH), "w": random(WIDTH, ROWS),
    }  # fmt: skip
    shapes = {name: [2048, WIDTH] for name in ("angles", "table")}
    leave(
        graph(nodes, constants, {"ids": [2, 3]}, [2, 3, ROWS], shapes, {"ids": TensorProto.INT64}),
        MoveTableOperators(),
    )
