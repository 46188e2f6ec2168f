"""Producers, users, constants, attributes and shapes of a small graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from small_graphs import SHAPE, WIDTH, graph, node, random

from edgetie.graph.matching import (
    attribute_ints,
    constant,
    last_dimension,
    only_user,
    operand_orders,
    operator,
    other_operand,
    outer_node,
    producer,
    rank,
    same_shape,
    scalar,
    weight,
)


@pytest.fixture
def values() -> dict[str, ir.Value]:
    model = graph(
        [
            node("Transpose", ["w"], ["t"], perm=[1, 0]),
            node("MatMul", ["x", "t"], ["m"]),
            node("Add", ["m", "one"], ["a"]),
            node("Mul", ["a", "m"], ["y"]),
        ],
        {"w": random(WIDTH, WIDTH), "one": np.float32(1)},
        shapes={"m": SHAPE, "a": SHAPE},
    )
    return ir.convenience.create_value_mapping(model.graph)


def test_producers_and_users(values: dict[str, ir.Value]) -> None:
    assert producer(values["m"], "MatMul", "Gemm").outputs[0] is values["m"]
    assert producer(values["m"], "Add") is None
    assert producer(values["x"], "MatMul") is None
    assert producer(None, "MatMul") is None
    assert only_user(values["t"], "MatMul") is values["m"].producer()
    assert only_user(values["a"]) is values["y"].producer()
    assert only_user(values["t"], "Add") is None
    assert only_user(values["m"]) is None, "two users"
    assert only_user(values["y"]) is None, "a graph output"


def test_operands(values: dict[str, ir.Value]) -> None:
    add = values["a"].producer()
    m, one = values["m"], values["one"]
    assert list(operand_orders(add)) == [(m, one), (one, m)]
    assert other_operand(add, m) is one
    assert other_operand(add, one) is m


def test_constants(values: dict[str, ir.Value]) -> None:
    assert constant(values["w"]).shape == (WIDTH, WIDTH)
    assert constant(values["w"], limit=100) is None
    assert constant(values["x"]) is None
    assert scalar(values["one"]) == 1
    assert scalar(values["w"]) is None
    assert weight(values["w"]) is values["w"].const_value
    assert weight(values["m"]) is None
    assert weight(None) is None


def test_attributes(values: dict[str, ir.Value]) -> None:
    assert attribute_ints(values["t"].producer(), "perm") == [1, 0]
    assert attribute_ints(values["m"].producer(), "perm") is None


def value(*shape: int | str | None) -> ir.Value:
    return ir.Value(shape=ir.Shape(shape))


def test_shapes() -> None:
    assert last_dimension(value("batch", 64)) == 64
    assert last_dimension(value(64, "width")) is None
    assert last_dimension(value()) is None
    assert last_dimension(ir.Value()) is None
    assert same_shape(value("batch", 3), value("batch", 3))
    assert not same_shape(value("batch", 3), value("rows", 3))
    assert not same_shape(value(None, 3), value(None, 3)), "both unknown"
    assert not same_shape(value(1, 2), value(1, 2, 3))
    assert not same_shape(value(1), ir.Value())
    assert same_shape(value("batch", 3), value("batch", 4), end=-1)
    assert not same_shape(value("batch", 3), value("rows", 3), end=-1)
    assert not same_shape(value(2, 3), value(2, 3, 4), end=-1)


@pytest.mark.parametrize(
    ("domain", "name"),
    [("", "MatMul"), ("ai.onnx", "MatMul"), ("com.microsoft", "MatMul"), ("my", "my::MatMul")],
)
def test_the_domain_is_a_prefix_unless_onnx_owns_it(domain: str, name: str) -> None:
    assert operator(ir.node("MatMul", [], domain=domain)) == name


def test_rank_is_zero_if_it_is_unknown() -> None:
    assert rank(ir.Value(name="v")) == 0
    assert rank(ir.Value(name="v", shape=ir.Shape([None, 3]))) == 2


def test_the_node_that_a_node_of_a_subgraph_belongs_to() -> None:
    output = helper.make_tensor_value_info("n", TensorProto.FLOAT, None)
    branch = helper.make_graph([node("Neg", ["x"], ["n"])], "branch", [], [output])
    choice = node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    model = graph([node("Abs", ["x"], ["unused"]), choice], {"flag": True})
    absolute, outer = model.graph
    inner = next(each for each in model.graph.all_nodes() if each.op_type == "Neg")
    assert outer_node(inner, model.graph) is outer
    assert outer_node(absolute, model.graph) is absolute
