"""Values that are the same in every run, and the weights they are computed from."""

from __future__ import annotations

import onnx_ir as ir
from onnx import TensorProto, helper
from small_graphs import WIDTH, graph, node, random

from edgetie.graph.constant_values import constant_values, is_deterministic


def test_what_is_computed_from_weights() -> None:
    model = graph(
        [
            node("MatMul", ["a", "b"], ["product"]),
            node("Mul", ["product", "two"], ["scaled"]),
            node("Neg", ["two"], ["small"]),
            node("MatMul", ["x", "scaled"], ["m"]),
            node("Add", ["m", "small"], ["y"]),
        ],
        {"a": random(WIDTH, WIDTH), "b": random(WIDTH, WIDTH), "two": random(1)},
    )
    weights = {
        str(value.name): sorted(str(weight.name) for weight in weights)
        for value, weights in constant_values(model).items()
    }
    assert weights == {
        "a": ["a"], "b": ["b"], "two": [], "small": [],
        "product": ["a", "b"], "scaled": ["a", "b"],
    }  # fmt: skip


def test_values_of_subgraphs() -> None:
    output = helper.make_tensor_value_info("n", TensorProto.FLOAT, None)
    branch = helper.make_graph([node("Neg", ["w"], ["n"])], "branch", [], [output])
    nodes = [node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)]
    model = graph(nodes, {"w": random(WIDTH, WIDTH), "flag": True})
    weights = constant_values(model)
    assert sum(value.name == "n" for value in weights) == 2
    assert model.graph.outputs[0] not in weights


def test_random_numbers_and_foreign_operators_are_not_deterministic() -> None:
    assert is_deterministic(ir.node("Neg", []))
    assert not is_deterministic(ir.node("RandomUniform", []))
    assert not is_deterministic(ir.node("Neg", [], domain="elsewhere"))


def test_an_initializer_that_a_caller_may_override_is_not_constant() -> None:
    model = graph([node("Mul", ["w", "two"], ["s"]), node("MatMul", ["x", "s"], ["y"])],
                  {"w": random(WIDTH, WIDTH), "two": random(1)})  # fmt: skip
    model.graph.inputs.append(model.graph.initializers["two"])
    assert [value.name for value in constant_values(model)] == ["w"]
    model.ir_version = 3
    assert [value.name for value in constant_values(model)] == ["w", "two", "s"]
