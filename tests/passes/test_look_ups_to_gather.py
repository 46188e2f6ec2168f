"""One-hot vectors times a weight, and GatherND, become a Gather."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import WIDTH, graph, leave, node, random, rewrite

from edgetie.passes.look_ups_to_gather import LookUpsToGather

ROWS = 48
IDS = np.array([[3, 0, 47], [-1, 12, 5]])


def model(nodes: list[Any], **constants: Any) -> ir.Model:
    return graph(
        nodes,
        {"table": random(ROWS, WIDTH)} | constants,
        {"ids": [2, 3]},
        [2, 3, WIDTH],
        {"vectors": [2, 3, ROWS], "column": [2, 3, 1], "flags": [2, 3, ROWS]},
        {"ids": TensorProto.INT64, "column": TensorProto.INT64, "flags": TensorProto.BOOL},
    )


def one_hot(**constants: Any) -> ir.Model:
    nodes = [
        node("OneHot", ["ids", "depth", "values"], ["vectors"], axis=-1),
        node("MatMul", ["vectors", "table"], ["y"]),
    ]
    return model(nodes, **{"depth": ROWS, "values": np.float32([0, 1])} | constants)


@pytest.mark.parametrize("ids", [IDS, IDS + 40], ids=["of the table", "beyond it"])
def test_one_hot_vectors(ids: np.ndarray) -> None:
    operators = rewrite(one_hot(), LookUpsToGather(), ids=ids)
    assert operators["Gather"] == 1
    assert not {"OneHot", "MatMul"} & operators.keys()


@pytest.mark.parametrize("ids", [IDS, IDS + 40], ids=["of the table", "beyond it"])
@pytest.mark.parametrize("choice", ["Cast", "Where"])
def test_ids_compared_with_a_range(ids: np.ndarray, choice: str) -> None:
    nodes = [
        node("Unsqueeze", ["ids", "last"], ["column"]),
        node("Equal", ["range", "column"], ["flags"]),
        node("Cast", ["flags"], ["vectors"], to=TensorProto.FLOAT)
        if choice == "Cast"
        else node("Where", ["flags", "one", "zero"], ["vectors"]),
        node("MatMul", ["vectors", "table"], ["y"]),
    ]
    numbers = {"one": np.float32(1), "zero": np.float32(0)} if choice == "Where" else {}
    constants = {"last": np.array([-1]), "range": np.arange(ROWS)} | numbers
    operators = rewrite(model(nodes, **constants), LookUpsToGather(), ids=ids)
    assert operators["Gather"] == 1
    assert not {"Equal", "MatMul"} & operators.keys()


def test_rows_by_gather_nd() -> None:
    nodes = [
        node("Unsqueeze", ["ids", "last"], ["column"]),
        node("GatherND", ["table", "column"], ["y"]),
    ]
    result = model(nodes, last=np.array([-1]))
    assert rewrite(result, LookUpsToGather(), ids=IDS)["Gather"] == 1


def test_other_vectors_stay() -> None:
    leave(one_hot(values=np.float32([0.1, 0.9])), LookUpsToGather())
    leave(one_hot(depth=ROWS + 1, table=random(ROWS + 1, WIDTH), values=np.float32([1, 0])),
          LookUpsToGather())  # fmt: skip
