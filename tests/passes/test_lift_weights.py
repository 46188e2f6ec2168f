"""Weights of functions and of Constant nodes become initializers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import SHAPE, WIDTH, X, graph, leave, node, random, rewrite, run

from edgetie.passes.lift_weights import LiftWeights

TABLE = random(WIDTH, WIDTH)


def constant(name: str, array: np.ndarray) -> object:
    return node("Constant", [], [name], value=numpy_helper.from_array(array))


def with_functions(
    nodes: list[object], constants: dict[str, np.ndarray], *, opset: int = 23, **functions: object
) -> ir.Model:
    model = graph(nodes, constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    for name, (inputs, body) in functions.items():
        proto = helper.make_function("local", name, inputs, ["out"], body, opsets)
        function = ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
    model.graph.opset_imports["local"] = 1
    return model


def test_a_weight_inside_a_function() -> None:
    head = [constant("w", TABLE), node("MatMul", ["h", "w"], ["out"])]
    outer = [node("Head", ["g"], ["out"], domain="local")]
    model = with_functions(
        [node("Outer", ["x"], ["y"], domain="local")], {}, Head=(["h"], head), Outer=(["g"], outer)
    )
    assert rewrite(model, LiftWeights(), x=X) == {"MatMul": 1}
    assert [value.shape.numpy() for value in model.graph.initializers.values()] == [(WIDTH, WIDTH)]
    assert not model.functions


@pytest.mark.parametrize("computed", [False, True])
def test_a_weight_that_a_function_gets(computed: bool) -> None:
    head = [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["h", "t"], ["out"])]
    nodes = [node("Neg", ["table"], ["n"])] if computed else []
    nodes.append(node("Head", ["x", "n" if computed else "table"], ["y"], domain="local"))
    model = with_functions(nodes, {"table": TABLE}, Head=(["h", "w"], head))
    leave(model, LiftWeights())
    operators = rewrite(model, LiftWeights(readers=True), x=X)
    assert operators == {"Transpose": 1, "MatMul": 1} | ({"Neg": 1} if computed else {})


def test_other_functions_stay() -> None:
    body = [node("Abs", ["a"], ["out"])]
    leave(with_functions([node("F", ["x"], ["y"], domain="local")], {}, F=(["a"], body)),
          LiftWeights(readers=True))  # fmt: skip


def test_functions_of_other_opsets_stay() -> None:
    body = [constant("w", TABLE), node("MatMul", ["h", "w"], ["out"])]
    nodes = [node("Head", ["x"], ["y"], domain="local")]
    model, step = with_functions(nodes, {}, opset=17, Head=(["h"], body)), LiftWeights()
    step(model)
    assert step.skipped == ["Head: has other opsets than the model"]
    assert [each.op_type for each in model.graph] == ["Head"]


def test_constants_of_nodes_become_initializers() -> None:
    model = graph([constant("w", TABLE), node("MatMul", ["x", "w"], ["y"])], {})
    assert rewrite(model, LiftWeights(), x=X) == {"MatMul": 1}
    assert list(model.graph.initializers) == ["w"]
    assert SHAPE[-1] == WIDTH


def test_constants_of_branches_are_computed_outside() -> None:
    info = helper.make_tensor_value_info("m", TensorProto.FLOAT, SHAPE)
    factor = numpy_helper.from_array(np.float32([2]), "factor")
    nodes = [node("Mul", ["w", "factor"], ["scaled"]), node("MatMul", ["x", "scaled"], ["m"])]
    then_branch = helper.make_graph(nodes, "then", [], [info], [factor])
    else_branch = helper.make_graph([node("MatMul", ["x", "w"], ["m"])], "else", [], [info])
    choice = node("If", ["flag"], ["y"], then_branch=then_branch, else_branch=else_branch)
    model = graph([choice], {"w": TABLE, "flag": np.array(True)})
    before = run(model, x=X)
    step = LiftWeights(readers=True)
    step(model)
    assert step.changed == 1
    assert [each.op_type for each in model.graph] == ["Mul", "If"]
    np.testing.assert_array_equal(run(model, x=X), before)
