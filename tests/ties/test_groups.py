"""Tie groups are found, counted and verified after each pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetie.errors import TieError
from edgetie.graph.editing import initializer
from edgetie.graph.model_files import load_model, write_models
from edgetie.passes.base import GraphPass, run_passes
from edgetie.ties.groups import (
    TieGroup,
    equal_initializers,
    find_shared_ties,
    find_ties,
    is_named,
    nodes_using,
    share_across,
    ties_of_file,
    verify_ties,
)

ROWS, COLUMNS = 128, 64


def tied_graph(table: np.ndarray | None = None) -> ir.Model:
    """Gather and Transpose→MatMul on one table."""
    if table is None:
        table = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["x"], name="lookup"),
            helper.make_node("Transpose", ["table"], ["transposed"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "transposed"], ["logits"], name="head"),
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


class FoldTranspose(GraphPass):
    """What ONNX Runtime and many tools do."""

    name = "fold_transpose"

    def rewrite(self, model: ir.Model) -> None:
        transpose = next(node for node in model.graph if node.op_type == "Transpose")
        array = transpose.inputs[0].const_value.numpy()
        copy = initializer(model.graph, "table_t", np.ascontiguousarray(array.T))
        ir.convenience.replace_all_uses_with(transpose.outputs[0], copy)
        self.changed = 1


class CopyTable(GraphPass):
    """A second initializer of equal value that nothing needs."""

    name = "copy_table"

    def rewrite(self, model: ir.Model) -> None:
        gather = next(node for node in model.graph if node.op_type == "Gather")
        gather.replace_input_with(
            0, initializer(model.graph, "again", gather.inputs[0].const_value.numpy().copy())
        )
        self.changed = 1


@pytest.mark.parametrize("breaker", [FoldTranspose, CopyTable])
def test_a_pass_that_breaks_a_tie_fails_by_name(breaker: type[GraphPass]) -> None:
    model = tied_graph()
    ties = find_ties(model)
    with pytest.raises(TieError, match=f"pass {breaker.name}.*table"):
        run_passes(model, ties, [breaker()])


def test_equal_and_transposed_copies_are_found() -> None:
    model = tied_graph()
    array = model.graph.initializers["table"].const_value.numpy()
    initializer(model.graph, "same", array.copy())
    initializer(model.graph, "transposed_copy", np.ascontiguousarray(array.T))
    initializer(model.graph, "other", array + 1)
    (group,) = equal_initializers(model)
    assert set(group) == {"table", "same", "transposed_copy"}


def test_a_lost_table_is_named() -> None:
    model = tied_graph()
    ties = find_ties(model)
    with pytest.raises(TieError, match="table is gone"):
        verify_ties(ir.Model(ir.Graph([], [], nodes=[], name="empty"), ir_version=10), ties)


def test_summed_matmuls_of_two_activations_are_two_uses() -> None:
    weight = np.random.default_rng(0).integers(-127, 127, (64, 64)).astype(np.int8)
    nodes = []
    for x in "ab":
        nodes.append(helper.make_node("MatMulInteger", [x, "w"], [f"{x}.matmul"]))
        nodes.append(helper.make_node("Cast", [f"{x}.matmul"], [f"{x}.y"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        [*nodes, helper.make_node("Sum", ["a.y", "b.y"], ["y"])],
        "sum",
        [helper.make_tensor_value_info(x, TensorProto.UINT8, [1, 64]) for x in "ab"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    (group,) = find_ties(ir.from_proto(helper.make_model(graph)))
    assert len(group.uses) == 2


def test_a_matmul_of_the_rounding_residual_is_no_use_of_its_own() -> None:
    weight = np.random.default_rng(0).integers(-127, 127, (64, 64)).astype(np.int8)
    nodes = [
        helper.make_node("Round", ["x"], ["rounded"]),
        helper.make_node("QuantizeLinear", ["rounded", "one"], ["q"]),
        helper.make_node("MatMulInteger", ["q", "w"], ["main"]),
        helper.make_node("Sub", ["x", "rounded"], ["residual"]),
        helper.make_node("QuantizeLinear", ["residual", "one"], ["r"]),
        helper.make_node("MatMulInteger", ["r", "w"], ["fine"]),
        helper.make_node("Add", ["main", "fine"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 64])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(1), "one")],
    )
    model = ir.from_proto(helper.make_model(graph))
    assert find_ties(model) == []
    assert [node.op_type for node in nodes_using(model, "w")] == ["MatMulInteger"] * 2


def test_equal_weights_of_two_models_get_one_name_and_one_group(tmp_path: Path) -> None:
    first, second = tied_graph(), tied_graph()
    second.graph.initializers["table"].name = "shared"
    models = {"encoder.onnx": first, "decoder.onnx": second}
    same = share_across(models)
    assert {a.name: b.name for a, b in same.items()} == {"table": "table"}
    assert list(second.graph.initializers) == ["table"]
    paths = write_models(models, tmp_path, data="model.onnx.data", same=same)
    loaded = {path.name: load_model(path) for path in paths}
    (group,) = find_shared_ties(loaded)
    assert [use.file for use in group.uses] == ["encoder.onnx"] * 2 + ["decoder.onnx"] * 2
    assert group.data == {"file": "model.onnx.data", "offset": 0, "length": ROWS * COLUMNS * 4}
    (part,) = ties_of_file([group], "decoder.onnx")
    assert len(part.uses) == 2
    assert ties_of_file([group], "other.onnx") == []


def test_groups_survive_json() -> None:
    groups = find_ties(tied_graph(), [("head.weight", "table")])
    assert groups[0].parameters == ("head.weight", "table")
    assert [TieGroup.from_dict(group.to_dict()) for group in groups] == groups
    assert is_named("model.head.weight", ("head.weight",))
    assert not is_named("model.ahead.weight", ("head.weight",))
