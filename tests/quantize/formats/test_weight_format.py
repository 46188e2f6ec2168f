"""The node list of weight formats and what formats share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from small_graphs import X, graph, node, run

from edgetie.quantize.formats.matmul_nbits import MatMulNBitsFormat
from edgetie.quantize.formats.qdq import QdqFormat
from edgetie.quantize.formats.weight_format import Nodes, WeightFormat, rank
from edgetie.quantize.weights.affine import QuantSpec


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


def test_a_local_copy_has_the_type_and_names_of_a_subgraph_are_unique() -> None:
    model = graph([node("Relu", ["x"], ["y"])], {})
    nodes = Nodes(model.graph)
    copy = nodes.local_copy(model.graph.inputs[0])
    first, second = nodes.op_multi_out("Split", [copy], {"axis": 0}, num_outputs=2)
    assert (copy.shape, copy.dtype) == (model.graph.inputs[0].shape, ir.DataType.FLOAT)
    nodes.make_names_unique("branch")
    names = [value.name for value in (copy, first, second)]
    assert names == ["branch.0.0", "branch.1.0", "branch.1.1"]


def test_rank_is_zero_if_it_is_unknown() -> None:
    assert rank(ir.Value(name="v")) == 0
    assert rank(ir.Value(name="v", shape=ir.Shape([None, 3]))) == 2


def test_defaults_are_whole_output_channels_of_8_bits() -> None:
    weight_format: WeightFormat = QdqFormat(8, {})
    assert weight_format.spec(100) == QuantSpec(8)
    assert weight_format.higher_precision() is None
    assert weight_format.supports_input(ir.Value(name="v"))


def test_higher_precision_ends_with_the_smallest_blocks() -> None:
    chain = []
    weight_format: WeightFormat | None = MatMulNBitsFormat(4)
    while weight_format is not None:
        assert isinstance(weight_format, MatMulNBitsFormat)
        chain.append((weight_format.bits, weight_format.block))
        weight_format = weight_format.higher_precision()
    assert chain == [(4, 32), (8, 64), (8, 16)]
