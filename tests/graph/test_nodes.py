"""Nodes to insert, and the constants that they read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import X, graph, node, run

from edgetie.graph.nodes import Nodes


def test_calls_add_nodes_and_constants_are_registered_once() -> None:
    model = graph([node("Relu", ["x"], ["y"])], {})
    nodes = Nodes(model.graph)
    half = nodes.constant("half", 0.5, np.float32)
    assert nodes.constant("half", 0.5, np.float32) is half
    result = nodes("Mul", nodes("Neg", model.graph.inputs[0]), half)
    assert [each.op_type for each in nodes.nodes] == ["Neg", "Mul"]
    assert list(model.graph.initializers) == ["half"]
    assert len(model.graph) == 1  # nothing is inserted yet
    relu = model.graph.node(0)
    model.graph.insert_before(relu, nodes.nodes)
    relu.replace_input_with(0, result)
    np.testing.assert_allclose(run(model, x=X), np.maximum(-X / 2, 0))


def test_names_of_a_subgraph_are_unique() -> None:
    model = graph([node("Relu", ["x"], ["y"])], {})
    nodes = Nodes(model.graph)
    copy = nodes("Identity", model.graph.inputs[0])
    first, second = nodes.op_multi_out("Split", [copy], {"axis": 0}, num_outputs=2)
    nodes.make_names_unique("branch")
    names = [value.name for value in (copy, first, second)]
    assert names == ["branch.0.0", "branch.1.0", "branch.1.1"]


def test_outputs_have_the_types_and_shapes_that_onnx_infers() -> None:
    nodes = Nodes(graph([node("Relu", ["x"], ["y"])], {}).graph)
    x = ir.val("x", ir.DataType.FLOAT, ["batch", "sequence", 6])
    heads = nodes("Reshape", x, nodes.integers("heads", [0, 0, 2, 3]))
    first, second = nodes.op_multi_out(
        "Split", [x, nodes.integers("parts", [4, 2])], {"axis": -1}, num_outputs=2
    )
    cast = nodes.cast(heads, ir.DataType.FLOAT16)
    assert [str(size) for size in heads.shape] == ["batch", "sequence", "2", "3"]
    assert (first.shape[-1], second.shape[-1]) == (4, 2)
    assert (heads.dtype, cast.dtype) == (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    assert nodes.cast(cast, ir.DataType.FLOAT16) is cast


def test_outputs_of_what_onnx_does_not_know_stay_open() -> None:
    nodes = Nodes(graph([node("Relu", ["x"], ["y"])], {}).graph)
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 6])
    assert nodes("Gelu", x, domain="com.microsoft").type is None
    assert nodes("Add", x, ir.val("unknown")).shape is None
    assert nodes("Add", x, nodes.constant("other", np.ones(5), np.float32)).type is None  # unfit
    lazy = ir.LazyTensor(lambda: 1 / 0, ir.DataType.INT64, ir.Shape([2]))  # is not computed
    assert nodes("Reshape", x, nodes.tensor("lazy", lazy)).dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("opset", [11, 13])
def test_axes_are_an_attribute_or_an_input(opset: int) -> None:
    model = graph([node("Relu", ["x"], ["y"])], {}, opset=opset)
    nodes, x = Nodes(model.graph), model.graph.inputs[0]
    total = nodes.along("ReduceSum", x, -1, keepdims=1)
    assert list(total.shape) == [*x.shape[:-1], 1]
    assert total.dtype == ir.DataType.FLOAT
    relu = model.graph.node(0)
    model.graph.insert_before(relu, nodes.nodes)
    relu.replace_input_with(0, nodes("Sub", x, total))
    model.graph.insert_before(relu, nodes.nodes[-1])
    expected = np.maximum(X - X.sum(axis=-1, keepdims=True), 0)
    np.testing.assert_allclose(run(model, x=X), expected, rtol=1e-4, atol=1e-5)


def test_numbers_of_a_type() -> None:
    nodes = Nodes(graph([node("Relu", ["x"], ["y"])], {}).graph)
    assert nodes.number(2, ir.DataType.INT64) is not nodes.number(2, ir.DataType.FLOAT)
    assert nodes.number(0.5, ir.DataType.FLOAT16).const_value.numpy() == np.float16(0.5)


def test_discarded_nodes_use_nothing() -> None:
    model = graph([node("Relu", ["x"], ["y"])], {})
    nodes, x = Nodes(model.graph), model.graph.inputs[0]
    nodes("Mul", nodes("Neg", x), x)
    assert len(x.uses()) == 3
    nodes.discard()
    assert len(x.uses()) == 1


def test_nodes_replace_another_or_one_use() -> None:
    model = graph([node("Abs", ["x"], ["a"]), node("Sub", ["a", "a"], ["y"])], {})
    nodes, (first, last) = Nodes(model.graph), model.graph
    nodes.insert_instead_of(first, nodes("Mul", first.inputs[0], first.inputs[0]))
    nodes = Nodes(model.graph)
    nodes.insert_for_use(last, 1, nodes("Neg", last.inputs[1]))
    model.graph.remove(first)
    assert [each.op_type for each in model.graph] == ["Mul", "Neg", "Sub"]
    assert last.inputs[0].name == "a"
    np.testing.assert_allclose(run(model, x=X), 2 * X * X, rtol=1e-6)
