"""Tables of more than two axes become matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import graph, leave, node, random, rewrite

from edgetie.passes.flatten_tables import FlattenTables

TABLE = random(96, 4, 16)


def model(nodes: list[Any], ids: list[int], shapes: Any = None) -> ir.Model:
    types = {"ids": TensorProto.INT64}
    return graph(nodes, {"table": TABLE}, {"ids": ids}, [*ids, 4, 16], shapes, types)


@pytest.mark.parametrize("ids", [np.array(5), np.array([[3, 0, -1], [95, 7, 7]])])
def test_rows(ids: np.ndarray) -> None:
    result = model([node("Gather", ["table", "ids"], ["y"])], list(ids.shape))
    assert rewrite(result, FlattenTables(), ids=ids) == {"Gather": 1, "Reshape": 1}
    assert result.graph.initializers["table"].shape == ir.Shape([96, 64])


def test_other_users_read_the_axes() -> None:
    nodes = [
        node("Gather", ["table", "ids"], ["rows"]),
        node("ReduceMax", ["table"], ["largest"], keepdims=0),
        node("Div", ["rows", "largest"], ["y"]),
    ]
    result = model(nodes, [3])
    operators = rewrite(result, FlattenTables(), ids=np.array([1, 2, 3]))
    assert operators == {"Gather": 1, "Reshape": 2, "ReduceMax": 1, "Div": 1}


def test_other_tables_stay() -> None:
    result = model([node("Gather", ["table", "ids"], ["y"])], [3])
    leave(result, FlattenTables(["table"]))
    nodes = [node("Gather", ["table", "ids"], ["a"], axis=1), node("ReduceSum", ["a"], ["b"]),
             node("Identity", ["b"], ["y"])]  # fmt: skip
    leave(model(nodes, [3], {"a": [96, 3, 16]}), FlattenTables())
