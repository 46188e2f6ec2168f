"""Nodes, values and initializers are added, replaced and removed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from small_graphs import SHAPE, X, graph, node, run

from edgetie.graph.editing import (
    initializer,
    insert,
    replace,
    replace_initializer,
    take_over,
    transformed,
)


def test_a_replaced_graph_output_keeps_its_name() -> None:
    model = graph([node("Neg", ["x"], ["n"]), node("Neg", ["n"], ["y"])], {})
    replace(model.graph.outputs[0], model.graph[0].outputs[0])
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert [str(d) for d in model.graph.outputs[0].shape] == [str(d) for d in SHAPE]
    RemoveUnusedNodesPass()(model)
    assert [n.op_type for n in model.graph] == ["Neg"]
    np.testing.assert_array_equal(run(model, x=X), -X)


def test_users_of_a_replaced_value_read_the_new_one() -> None:
    model = graph([node("Abs", ["x"], ["a"]), node("Neg", ["a"], ["y"])], {})
    first, last = model.graph
    square = ir.node("Mul", [model.graph.inputs[0], model.graph.inputs[0]])
    insert(last, square)
    replace(first.outputs[0], square.outputs[0])
    RemoveUnusedNodesPass()(model)
    assert [n.op_type for n in model.graph] == ["Mul", "Neg"]
    assert all(value.name for n in model.graph for value in n.outputs)
    np.testing.assert_array_equal(run(model, x=X), -(X * X))


def test_a_value_computed_in_another_way_keeps_the_name() -> None:
    for middle, nodes in (("a", [node("Neg", ["a"], ["y"])]), ("y", [])):
        model = graph([node("Abs", ["x"], [middle]), *nodes], {})
        first = model.graph[0]
        other = ir.node("Max", [model.graph.inputs[0], ir.node("Neg", first.inputs).outputs[0]])
        insert(first, other.inputs[1].producer(), other)
        take_over(first.outputs[0], other.outputs[0])
        RemoveUnusedNodesPass()(model)
        assert [(n.op_type, n.outputs[0].name) for n in model.graph][1] == ("Max", middle)
        np.testing.assert_array_equal(run(model, x=X), np.abs(X) if middle == "y" else -np.abs(X))


def test_initializers_of_one_name_are_one() -> None:
    model = graph([node("Neg", ["x"], ["y"])], {})
    first = initializer(model.graph, "two", np.float32([2]))
    assert initializer(model.graph, "two", np.float32([3])) is first
    assert first.const_value.numpy() == [2]
    lazy = ir.LazyTensor(
        lambda: ir.tensor(np.zeros(3)), dtype=ir.DataType.DOUBLE, shape=ir.Shape([3])
    )
    assert initializer(model.graph, "lazy", lazy).const_value is lazy
    RemoveUnusedNodesPass()(model)
    assert not model.graph.initializers


def test_an_initializer_is_replaced_by_its_transpose() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    model = graph([node("MatMul", ["x", "w"], ["y"])], {"w": matrix})
    old = model.graph.initializers["w"]
    turned = transformed(old.const_value, np.transpose, [4, 3])
    new = replace_initializer(model.graph, old, turned)
    assert model.graph.initializers["w"] is new
    assert [index for _, index in old.uses()] == [1]
    np.testing.assert_array_equal(new.const_value.numpy(), matrix.T)
    assert (new.dtype, new.shape) == (ir.DataType.FLOAT, ir.Shape([4, 3]))
    total = transformed(
        old.const_value, lambda array: np.float64(array.sum()), [], ir.DataType.DOUBLE
    )
    assert (total.numpy().shape, total.numpy(), total.dtype) == ((), 66, ir.DataType.DOUBLE)
