"""MatMulInteger with operators of the ONNX standard."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from quantized_graphs import (
    IDS,
    OUT,
    TOKENS,
    arrays,
    linear,
    quantize,
    relative_error,
    tied,
    weights,
)
from small_graphs import random, run

from edgetie.graph.nodes import Nodes
from edgetie.quantize.formats.matmul_integer_standard import (
    DynamicMatMulIntegerFormat,
    StandardMatMulIntegerFormat,
)
from edgetie.quantize.weights.quantized_weight import QuantizedWeight


def assert_standard(model: ir.Model) -> None:
    assert {node.domain for node in model.graph} == {""}


@pytest.mark.parametrize("split", [False, True])
def test_standard_operators_hardly_round_activations(split: bool) -> None:
    w, bias, x = weights(), random(OUT), random(2, 5, 64, seed=3)
    x[1, 2] = 0
    model = linear(w, bias=bias)
    quantize(model, format_ := StandardMatMulIntegerFormat(split_matmuls=split), format_)
    assert_standard(model)
    exact = x @ (arrays(model)["w"][0] * (np.abs(w).max(axis=0) / 127)) + bias
    assert relative_error(run(model, x=x), exact) < 1e-3


def test_a_tied_embedding_is_one_initializer() -> None:
    embedding = weights(TOKENS, 64)
    model = tied(embedding)
    before = run(model, ids=IDS)
    quantize(model, format_ := StandardMatMulIntegerFormat(), format_)
    assert_standard(model)
    assert [n for n, a in arrays(model).items() if a.size >= embedding.size] == ["embedding"]
    assert relative_error(run(model, ids=IDS), before) < 0.02


def test_rows_of_an_embedding_that_no_linear_operator_reads() -> None:
    embedding = weights(TOKENS, 64)
    value = tied(embedding).graph.initializers["embedding"]
    graph = ir.Graph([], [], nodes=[], initializers=[], name="rows")
    weight_format = StandardMatMulIntegerFormat()
    weight = QuantizedWeight(
        graph, value, weight_format.spec(64), transposed=False, in_linear_op=False
    )
    weight_format.add_values(weight)
    nodes = Nodes(graph)
    ids = ir.Value(name="ids", shape=ir.Shape([2, 4]), type=ir.TensorType(ir.DataType.INT64))
    rows = weight_format.gather(nodes, weight, ids)
    rows.name, rows.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph.inputs.append(ids)
    graph.outputs.append(rows)
    graph.extend(nodes.nodes)
    graph.opset_imports[""] = 21
    assert relative_error(run(ir.Model(graph, ir_version=10), ids=IDS), embedding[IDS]) < 0.01


def test_dynamic_activations_have_a_scale_for_each_token() -> None:
    w, bias, x = weights(), random(OUT), random(2, 5, 64, seed=3)
    x[0, 1] *= 1000  # one scale for all would lose the others
    x[1, 2] = 0
    model = linear(w, bias=bias)
    quantize(model, DynamicMatMulIntegerFormat(), StandardMatMulIntegerFormat())
    assert_standard(model)
    stored = arrays(model)
    assert (stored["w"].dtype, stored["w"].shape) == (np.uint8, (64, OUT))
    scales = np.abs(w).max(axis=0) / 127
    np.testing.assert_array_equal(stored["w"], np.rint(w / scales) + 128)
    result, expected = run(model, x=x) - bias, x @ w
    for index in ((0, 0), (0, 1), (1, 3)):
        assert relative_error(result[index], expected[index]) < 0.02
    np.testing.assert_allclose(result[1, 2], 0, atol=1e-6)


def test_the_dynamic_format_is_not_for_embeddings() -> None:
    with pytest.raises(NotImplementedError):
        quantize(
            tied(weights(TOKENS, 64)), DynamicMatMulIntegerFormat(), DynamicMatMulIntegerFormat()
        )
