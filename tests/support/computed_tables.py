"""Operators on a table, whose result is looked up or multiplied."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx import TensorProto
from small_graphs import graph, node, random, run

from edgetie.passes.base import run_passes
from edgetie.passes.move_table_operators import MoveTableOperators

ROWS, WIDTH = 48, 32
TABLE = random(ROWS, WIDTH)
COLUMNS, FACTORS = random(WIDTH, seed=1), random(ROWS, 1, seed=2)
UPDATE = random(ROWS, 4, seed=3), random(4, WIDTH, seed=4)
LAYER = random(WIDTH, WIDTH, seed=5)


@dataclass(frozen=True)
class Computed:
    """Nodes that compute ``result`` from ``table``.

    Attributes:
        nodes: in order.
        constants: that they read.
        shape: of the result.
        opset: that they need.
    """

    nodes: list[Any]
    constants: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (ROWS, WIDTH)
    opset: int = 17


def one(
    op_type: str, *others: Any, shape: tuple[int, ...] = (ROWS, WIDTH), **attributes: Any
) -> Computed:
    """One node, which reads constants too."""
    names = [f"c{index}" for index in range(len(others))]
    step = node(op_type, ["table", *names], ["result"], **attributes)
    return Computed([step], dict(zip(names, others, strict=True)), shape)


def ints(*values: int) -> np.ndarray:
    return np.array(values)


LINEAR = {
    "Mul of a number": one("Mul", np.float32(3)),
    "Mul of columns": one("Mul", COLUMNS),
    "Mul of rows": one("Mul", FACTORS),
    "Div of columns": one("Div", COLUMNS[None]),
    "Div of rows": one("Div", FACTORS),
    "Add of a number": one("Add", np.float32(3)),
    "Add of columns": one("Add", COLUMNS),
    "Sub of rows": one("Sub", FACTORS),
    "Neg": one("Neg"),
    "Identity": one("Identity"),
    "Cast": Computed(
        [
            node("Cast", ["table"], ["double"], to=TensorProto.DOUBLE),
            node("Mul", ["double", "factors"], ["scaled"]),
            node("Cast", ["scaled"], ["result"], to=TensorProto.FLOAT),
        ],
        {"factors": COLUMNS.astype(np.float64)},
    ),
    "LpNormalization": one("LpNormalization", axis=1, p=2),
    "LayerNormalization": one("LayerNormalization", COLUMNS, COLUMNS + 1, axis=-1, epsilon=0.01),
    "Where of rows": Computed(
        [node("Where", ["mask", "table", "zero"], ["result"])],
        {"mask": FACTORS > 0, "zero": np.float32(0)},
    ),
    "Where of columns": Computed(
        [node("Where", ["mask", "table", "columns"], ["result"])],
        {"mask": COLUMNS > 0, "columns": COLUMNS},
    ),
    "Slice of rows": one("Slice", ints(1), ints(-2), shape=(ROWS - 3, WIDTH)),
    "Slice of few rows": one("Slice", ints(1), ints(9), shape=(8, WIDTH)),
    "Slice of rows backwards": one(
        "Slice", ints(40), ints(-100), ints(0), ints(-1), shape=(41, WIDTH)
    ),
    "Slice of columns": one("Slice", ints(2), ints(30), ints(1), shape=(ROWS, 28)),
    "Gather of rows": one("Gather", ints(*range(40, 0, -1)), shape=(40, WIDTH)),
    "Gather of few rows": one("Gather", ints(5, -1, 5), shape=(3, WIDTH)),
    "Concat of rows": Computed(
        [node("Concat", ["extra", "table", "more"], ["result"], axis=0)],
        {"extra": random(1, WIDTH, seed=6), "more": random(7, WIDTH, seed=7)},
        (ROWS + 8, WIDTH),
    ),
    "Concat of columns": Computed(
        [node("Concat", ["table", "extra"], ["result"], axis=-1)],
        {"extra": random(ROWS, 8, seed=6)},
        (ROWS, WIDTH + 8),
    ),
    "Pad": one("Pad", ints(2, 0, 5, 0), shape=(ROWS + 7, WIDTH)),
    "Pad of columns": one("Pad", ints(0, 3, 0, 1), shape=(ROWS, WIDTH + 4)),
    "ScatterND": one("ScatterND", np.array([[4], [0]]), random(2, WIDTH, seed=6)),
    "a low-rank update": Computed(
        [node("MatMul", ["a", "b"], ["delta"]), node("Sub", ["delta", "table"], ["result"])],
        {"a": UPDATE[0], "b": UPDATE[1]},
    ),
    "a projection": one("MatMul", random(WIDTH, 24, seed=6), shape=(ROWS, 24)),
    "a mixture of rows": Computed(
        [node("MatMul", ["mixture", "table"], ["result"])],
        {"mixture": random(40, ROWS, seed=6)},
        (40, WIDTH),
    ),
    "Split": Computed(
        [
            node("Split", ["table"], ["first", "second"], axis=1),
            node("Sub", ["second", "first"], ["result"]),
        ],
        shape=(ROWS, WIDTH // 2),
    ),
}  # fmt: skip
"""Operators that products pass."""

BY_ROWS = {
    "Tanh": one("Tanh"),
    "Pow": one("Pow", np.float32(2)),
    "Clip": one("Clip", np.float32(-1), np.float32(1)),
    "Max of columns": one("Max", COLUMNS),
    "Softmax": one("Softmax", axis=-1),
    "a product of two tables": Computed(
        [node("Exp", ["table"], ["other"]), node("Mul", ["table", "other"], ["result"])]
    ),
}
"""Others that look-ups pass."""

KEEPING_SHAPE = {
    name for name, each in (LINEAR | BY_ROWS).items() if each.shape == (ROWS, WIDTH)
} - {"a low-rank update"}
"""Operators whose result may be the table of others."""


def moved(computed: Computed, use: list[Any], inputs: dict[str, Any], **feeds: Any) -> ir.Model:
    """Move the operators past a use with the result ``y``, which must stay the same."""
    types = {"ids": TensorProto.INT64}
    model = graph(
        [*computed.nodes, *use], {"table": TABLE} | computed.constants, inputs, types=types,
        opset=computed.opset,
    )  # fmt: skip
    model.graph.outputs[0].shape = None
    common.ShapeInferencePass()(model)
    before = run(model, **feeds)
    step = MoveTableOperators()
    run_passes(model, [], [step])
    assert step.skipped == []
    np.testing.assert_allclose(run(model, **feeds), before, rtol=1e-3, atol=1e-4)
    return model


def table_users(model: ir.Model) -> set[str]:
    """The operators that read the table, or its transpose."""
    users: set[ir.Node] = {user for user, _ in model.graph.initializers["table"].uses()}
    turned = [n for n in users if n.op_type == "Transpose"]
    users = users.difference(turned).union(u for n in turned for u, _ in n.outputs[0].uses())
    return {user.op_type for user in users}


def after(first: Computed, second: Computed) -> Computed:
    """Apply the operators of ``second`` to the result of ``first``, which has the table's shape."""

    def rename(names: Any) -> list[str]:
        kept = {"result": "result", "table": "first", "": ""}
        return [kept.get(name, f"second.{name}") for name in names]

    nodes = []
    for step in second.nodes:
        renamed = type(step)()
        renamed.CopyFrom(step)
        renamed.input[:], renamed.output[:] = rename(step.input), rename(step.output)
        nodes.append(renamed)
    earlier = []
    for step in first.nodes:
        renamed = type(step)()
        renamed.CopyFrom(step)
        renamed.output[:] = ["first" if name == "result" else name for name in step.output]
        earlier.append(renamed)
    constants = {f"second.{name}": array for name, array in second.constants.items()}
    return Computed([*earlier, *nodes], first.constants | constants, second.shape)
