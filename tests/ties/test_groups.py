"""Tie groups: found, counted, and missed when a pass parts them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgetie.errors import TieError
from edgetie.graph.editing import initializer
from edgetie.passes.base import GraphPass
from edgetie.passes.run import run_passes
from edgetie.ties.groups import equal_initializers, find_ties, verify_ties
from edgetie.ties.torch_parameters import partial_ties

ROWS, COLUMNS = 128, 64


def tied_graph(table: np.ndarray | None = None) -> ir.Model:
    """Gather and Transpose→MatMul on one table."""
    if table is None:
        table = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["x"], name="lookup"),
            helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "turned"], ["logits"], name="head"),
        ],
        "tied",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", ROWS])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return ir.serde.deserialize_model(model)


def test_uses_are_seen_through_a_transpose() -> None:
    (tie,) = find_ties(tied_graph())
    assert tie.name == "table"
    assert tie.bytes == ROWS * COLUMNS * 4
    assert [(use.op_type, use.input, use.transposed) for use in tie.uses] == [
        ("Gather", 0, False),
        ("MatMul", 1, True),
    ]


class FoldsTheTranspose(GraphPass):
    """What ONNX Runtime and many tools do."""

    name = "folds_the_transpose"

    def rewrite(self, model: ir.Model) -> None:
        transpose = next(node for node in model.graph if node.op_type == "Transpose")
        array = transpose.inputs[0].const_value.numpy()
        copy = initializer(model.graph, "table_t", np.ascontiguousarray(array.T))
        ir.convenience.replace_all_uses_with(transpose.outputs[0], copy)
        self.changed = 1


class CopiesTheTable(GraphPass):
    """A second initializer of equal value that nothing needs."""

    name = "copies_the_table"

    def rewrite(self, model: ir.Model) -> None:
        gather = next(node for node in model.graph if node.op_type == "Gather")
        gather.replace_input_with(
            0, initializer(model.graph, "again", gather.inputs[0].const_value.numpy().copy())
        )
        self.changed = 1


@pytest.mark.parametrize("breaker", [FoldsTheTranspose, CopiesTheTable])
def test_a_pass_that_parts_a_tie_fails_by_name(breaker: type[GraphPass]) -> None:
    model = tied_graph()
    ties = find_ties(model)
    with pytest.raises(TieError, match=f"pass {breaker.name}.*table"):
        run_passes(model, ties, [breaker()])


def test_equal_and_transposed_copies_are_found() -> None:
    model = tied_graph()
    array = model.graph.initializers["table"].const_value.numpy()
    initializer(model.graph, "same", array.copy())
    initializer(model.graph, "turned_copy", np.ascontiguousarray(array.T))
    initializer(model.graph, "other", array + 1)
    (group,) = equal_initializers(model)
    assert set(group) == {"table", "same", "turned_copy"}


def test_a_lost_table_is_named() -> None:
    model = tied_graph()
    ties = find_ties(model)
    with pytest.raises(TieError, match="table is gone"):
        verify_ties(ir.Model(ir.Graph([], [], nodes=[], name="empty"), ir_version=10), ties)


def test_a_part_of_a_table_is_told() -> None:
    embedding = torch.nn.Embedding(600, 64)
    head = torch.nn.Linear(64, 512, bias=False)
    head.weight = torch.nn.Parameter(embedding.weight.detach()[:512])
    other = torch.nn.Linear(64, 512, bias=False)
    module = torch.nn.ModuleDict({"embedding": embedding, "head": head, "other": other})
    assert partial_ties(module) == ["head.weight is a part of embedding.weight and is stored again"]
    head.weight = embedding.weight
    assert partial_ties(module) == []


def test_summed_products_of_two_activations_are_two_uses() -> None:
    weight = np.random.default_rng(0).integers(-127, 127, (64, 64)).astype(np.int8)
    nodes = []
    for x in "ab":
        nodes.append(helper.make_node("MatMulInteger", [x, "w"], [f"{x}.product"]))
        nodes.append(helper.make_node("Cast", [f"{x}.product"], [f"{x}.y"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        [*nodes, helper.make_node("Sum", ["a.y", "b.y"], ["y"])],
        "sum",
        [helper.make_tensor_value_info(x, TensorProto.UINT8, [1, 64]) for x in "ab"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    (group,) = find_ties(ir.from_proto(helper.make_model(graph)))
    assert len(group.uses) == 2
