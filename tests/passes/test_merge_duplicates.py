"""Initializers of equal content are merged."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from small_graphs import WIDTH, X, graph, leave, node, random, rewrite

from edgetie.graph.editing import initializer
from edgetie.passes.merge_duplicates import (
    MergeDuplicates,
    can_read_transposed,
    is_input_or_output,
    move_to_main_graph,
    read_transposed,
)

TABLE = random(WIDTH, WIDTH)


def matmuls(second: np.ndarray, op: str = "MatMul") -> ir.Model:
    return graph(
        [node("MatMul", ["x", "a"], ["m"]), node(op, ["m", "b"], ["y"])],
        {"a": TABLE, "b": second},
    )


def test_equal_weights_become_one() -> None:
    model, step = matmuls(TABLE.copy()), MergeDuplicates()
    assert rewrite(model, step, x=X) == {"MatMul": 2}
    assert list(model.graph.initializers) == ["a"]
    assert step.merged == {"b": "a"}


def test_a_transposed_copy_is_read_through_a_transpose() -> None:
    model = matmuls(np.ascontiguousarray(TABLE.T))
    assert rewrite(model, MergeDuplicates(), x=X) == {"MatMul": 2, "Transpose": 1}
    assert list(model.graph.initializers) == ["a"]


def test_a_gemm_reads_a_transposed_copy_by_its_attribute() -> None:
    model = graph(
        [node("MatMul", ["x", "a"], ["m"]), node("Gemm", ["m", "b"], ["y"])],
        {"a": TABLE, "b": np.ascontiguousarray(TABLE.T)},
        {"x": [5, WIDTH]},
        [5, WIDTH],
    )
    assert rewrite(model, MergeDuplicates(), x=X[0]) == {"MatMul": 1, "Gemm": 1}
    gemm = next(n for n in model.graph if n.op_type == "Gemm")
    assert gemm.attributes["transB"].as_int() == 1


def test_the_embedding_table_stays() -> None:
    model = graph(
        [
            node("MatMul", ["x", "head"], ["m"]),
            node("Gather", ["table", "ids"], ["row"]),
            node("Add", ["m", "row"], ["y"]),
        ],
        {"head": np.ascontiguousarray(TABLE.T), "table": TABLE, "ids": np.array([3])},
    )
    step = MergeDuplicates()
    rewrite(model, step, x=X)
    assert step.merged == {"head": "table"}


def test_a_copy_in_another_shape_becomes_an_alias() -> None:
    model = graph(
        [
            node("Reshape", ["b", "shape"], ["r"]),
            node("MatMul", ["x", "a"], ["m"]),
            node("MatMul", ["m", "r"], ["y"]),
        ],
        {"a": TABLE, "b": TABLE.reshape(WIDTH, 4, -1), "shape": np.array([WIDTH, WIDTH])},
    )
    step = MergeDuplicates()
    rewrite(model, step, x=X)
    assert {a.name: b.name for a, b in step.aliases.items()} == {"b": "a"}
    assert len(model.graph.initializers) == 3


def test_a_copy_in_another_shape_is_read_through_a_reshape() -> None:
    model = graph(
        [
            node("Reshape", ["b", "shape"], ["r"]),
            node("MatMul", ["x", "r"], ["m"]),
            node("MatMul", ["m", "a"], ["y"]),
        ],
        {"b": TABLE.reshape(WIDTH, 4, -1), "a": TABLE, "shape": np.array([WIDTH, WIDTH])},
    )
    step = MergeDuplicates(reshape=True)
    assert rewrite(model, step, x=X) == {"Reshape": 2, "MatMul": 2}
    assert step.merged == {"b": "a"}


def test_an_input_with_a_default_stays() -> None:
    model = matmuls(TABLE.copy())
    model.graph.inputs.append(model.graph.initializers["b"])
    step = MergeDuplicates()
    leave(model, step)
    assert step.skipped == ["b: is a, and an input or output"]
    assert is_input_or_output(model.graph.initializers["b"], model)
    model.ir_version = 3  # all initializers are inputs
    assert not is_input_or_output(model.graph.initializers["b"], model)


def branches() -> ir.Model:
    output = helper.make_tensor_value_info("m", TensorProto.FLOAT, None)
    copy = numpy_helper.from_array(TABLE, "w")
    branch = helper.make_graph([node("MatMul", ["x", "w"], ["m"])], "branch", [], [output], [copy])
    nodes = [node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)]
    return graph(nodes, {"flag": np.array(True)})


def test_copies_of_branches_move_to_the_main_graph() -> None:
    model = branches()
    rewrite(model, MergeDuplicates(), x=X)
    assert [list(g.initializers) for g in model.graphs()] == [["flag", "w.1"], [], []]


def test_a_moved_initializer_gets_a_name_of_its_own() -> None:
    model = branches()
    initializer(model.graph, "w", np.zeros(3, np.float32))
    value = next(g for g in model.graphs() if g is not model.graph).initializers["w"]
    move_to_main_graph(model, value)
    assert value.name == "w.1"
    assert model.graph.initializers["w.1"] is value


def test_a_matrix_of_another_graph_is_read_transposed() -> None:
    model, other = matmuls(random(WIDTH, WIDTH, seed=1)), matmuls(TABLE)
    copy, original = model.graph.initializers["b"], other.graph.initializers["a"]
    assert can_read_transposed(copy, original)
    value = read_transposed(model.graph, copy, original)
    assert value.name == "b"
    np.testing.assert_array_equal(value.const_value.numpy(), TABLE)
    assert [n.op_type for n in model.graph] == ["MatMul", "Transpose", "MatMul"]
