"""Weights, linear operators and Gathers that are replaced, and those that stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
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
from small_graphs import X, graph, node, random, run

from edgetie.errors import QuantizeError
from edgetie.quantize.formats.matmul_integer import MatMulIntegerFormat
from edgetie.quantize.formats.matmul_integer_standard import (
    DynamicMatMulIntegerFormat,
    StandardMatMulIntegerFormat,
)
from edgetie.quantize.formats.matmul_nbits import MatMulNBitsFormat
from edgetie.quantize.formats.qdq import QdqFormat
from edgetie.quantize.quantize_weights import QuantizeWeightsPass
from edgetie.quantize.weights.gptq import hessian

FORMATS: dict[str, Any] = {
    "nbits": lambda: (MatMulNBitsFormat(8), MatMulNBitsFormat(8)),
    "integer": lambda: (MatMulIntegerFormat(), MatMulIntegerFormat()),
    "dynamic": lambda: (DynamicMatMulIntegerFormat(), StandardMatMulIntegerFormat()),
    "qdq": lambda: (QdqFormat(16, {}), QdqFormat(16, {}, embedding=True)),
}
"""Formats of linear layers and embeddings."""


def nbits(model: ir.Model, **options: Any) -> QuantizeWeightsPass:
    return quantize(model, MatMulNBitsFormat(4), MatMulNBitsFormat(8), **options)


def operators(model: ir.Model) -> list[str]:
    return [each.op_type for each in model.graph]


def test_tied_weights_come_first_and_have_the_embedding_format() -> None:
    embedding, w = weights(TOKENS, 64), random(64, 64, seed=3)
    model = tied(embedding)
    model.graph.node(0).outputs[0].name = "rows"
    rows = model.graph.node(0).outputs[0]
    value = ir.Value(name="w", const_value=ir.tensor(w))
    value.shape, value.type = ir.Shape([64, 64]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.register_initializer(value)
    hidden = ir.node("MatMul", [rows, value], name="layer")
    hidden.outputs[0].shape, hidden.outputs[0].type = rows.shape, rows.type
    model.graph.insert_before(model.graph.node(1), hidden)
    model.graph.node(3).replace_input_with(0, hidden.outputs[0])
    before = run(model, ids=IDS)
    step = nbits(model)
    assert relative_error(run(model, ids=IDS), before) < 0.15  # 4 bits
    assert step.embeddings == ["embedding"]
    assert step.linear_initializers == {"w": ["w", "w.T.scales", "w.T.zero_points"]}
    assert step.block_sizes == {"64": 1, "32": 1}
    stored = arrays(model)
    large = {name: array.nbytes for name, array in stored.items() if array.size > 1000}
    assert large == {"embedding": TOKENS * 64, "w": 64 * 32}
    names = list(stored)
    assert names.index("embedding") < names.index("embedding.scales") < names.index("w")
    assert {each.name for each in model.graph} >= {"gather", "layer", "head"}


def test_a_bias_and_the_name_of_the_node_stay() -> None:
    model, x = linear(weights(), bias=random(OUT)), random(2, 5, 64, seed=3)
    before = run(model, x=x)
    step = quantize(model, MatMulNBitsFormat(8), MatMulNBitsFormat(8))
    assert (step.changed, step.skipped) == (1, [])
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert operators(model)[-1] == "Add"
    assert next(each for each in model.graph if each.op_type == "MatMulNBits").name == "linear"
    assert relative_error(run(model, x=x), before) < 0.01


def test_only_the_head_of_a_language_model_has_exact_inputs() -> None:
    for channels, exact in ((OUT, True), (32, False)):
        model = linear(random(64, channels))
        nbits(model)
        assert ("Concat" in operators(model)) is exact
    model = linear(random(64, 32))
    nbits(model, exact=["w"])
    assert "Concat" in operators(model)


def test_a_hessian_lowers_the_error_of_the_output() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(400, 16)) @ rng.normal(size=(16, 64))).astype(np.float32)[None]
    errors = []
    for hessians in ({}, {"w": lambda: hessian(x[0])}):
        model = linear(weights(), x.shape[:-1])
        before = run(model, x=x)
        nbits(model, hessians=hessians)
        errors.append(relative_error(run(model, x=x), before))
    assert errors[1] < 0.7 * errors[0]


def test_excluded_weights_stay_and_some_have_higher_precision() -> None:
    sizes = {}
    for options in ({"excluded": ["w"]}, {}, {"higher_precision": ["w"]}):
        model = linear(weights())
        step = nbits(model, **options)
        assert step.skipped == []
        sizes[str(options)] = arrays(model)["w"].nbytes
    assert list(sizes.values()) == [64 * OUT * 4, 64 * OUT // 2, 64 * OUT]


def test_weights_without_linear_operators_stay_in_floating_point() -> None:
    nodes = [node("Neg", ["w"], ["n"]), node("MatMul", ["x", "n"], ["y"])]
    model = graph(nodes, {"w": random(64, 64)})
    before = run(model, x=X)
    step = nbits(model)
    assert step.skipped == ["w: used by Neg"]
    assert step.float_weights == {"w": "used by Neg"}
    assert not step.changed
    np.testing.assert_array_equal(run(model, x=X), before)


@pytest.mark.parametrize(
    ("nodes", "users"),
    [
        (
            [
                node("MatMul", ["x", "w"], ["a"]),
                node("Transpose", ["w"], ["t"], perm=[1, 0]),
                node("MatMul", ["a", "t"], ["y"]),
            ],
            "Transpose",
        ),
        (
            [
                node("MatMul", ["x", "w"], ["a"]),
                node("Gather", ["w", "i"], ["b"]),
                node("Add", ["a", "b"], ["y"]),
            ],
            "MatMul",
        ),
        (
            [
                node("MatMul", ["x", "w"], ["a"]),
                node("Tanh", ["w"], ["t"]),
                node("MatMul", ["a", "t"], ["b"]),
                node("Neg", ["w"], ["n"]),
                node("MatMul", ["b", "n"], ["y"]),
            ],
            "Neg, Tanh",
        ),
    ],
    ids=["both orientations", "rows of (in, out)", "other operators"],
)
@pytest.mark.parametrize("width", [64, 70])
@pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS)
def test_other_uses_get_a_weight_dequantized(
    nodes: list[Any], users: str, width: int, formats: Any
) -> None:
    shape = ["batch", "sequence", width]
    constants = {"w": random(width, width) / 8, "i": np.array([0])}
    shapes = dict.fromkeys("ab", shape)
    model = graph(nodes, constants, {"x": shape}, shape, shapes, opset=21)
    x = random(2, 5, width, seed=7)
    before = run(model, x=x)
    step = quantize(model, *formats())
    assert step.dequantized == {"w": users}
    assert step.skipped == []
    dequantized = [each for each in model.graph if each.op_type == "DequantizeLinear"]
    assert len(dequantized) >= len(users.split(", "))
    assert relative_error(run(model, x=x), before) < 0.02


def test_weights_that_are_dequantized_have_8_bits() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Tanh", ["w"], ["t"]),
        node("MatMul", ["a", "t"], ["y"]),
    ]
    model = graph(nodes, {"w": random(64, 64) / 8})
    before = run(model, x=X)
    quantize(model, MatMulNBitsFormat(4), MatMulNBitsFormat(8))
    assert arrays(model)["w"].nbytes == 64 * 64
    assert relative_error(run(model, x=X), before) < 0.02


def test_old_opsets_cannot_dequantize() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Neg", ["w"], ["n"]),
             node("MatMul", ["a", "n"], ["y"])]  # fmt: skip
    step = nbits(graph(nodes, {"w": random(64, 64)}, opset=12))
    assert step.skipped == ["w: used by MatMul, Neg"]


def test_indices_of_unknown_rank_are_flattened() -> None:
    embedding = weights(TOKENS, 70)
    model = graph(
        [node("Gather", ["embedding", "ids"], ["y"], name="gather")],
        {"embedding": embedding},
        {"ids": ["n"]},
        ["n", 70],
        types={"ids": TensorProto.INT64},
    )
    model.graph.inputs[0].shape = None
    model.graph.outputs[0].shape = None
    quantize(model, MatMulNBitsFormat(8), MatMulNBitsFormat(8))
    for ids in (IDS, IDS[0], np.array(4)):
        result = run(model, ids=ids)
        assert result.shape == (*ids.shape, 70)
        assert relative_error(result, embedding[ids]) < 0.01


def test_a_flattened_head_reads_the_activation_before() -> None:
    nodes = [
        node("Reshape", ["x", "flat"], ["f"]),
        node("Transpose", ["f"], ["t"], perm=[1, 0]),
        node("MatMul", ["w", "t"], ["p"]),
        node("Transpose", ["p"], ["q"], perm=[1, 0]),
        node("Reshape", ["q", "back"], ["y"]),
    ]
    constants = {"w": random(64, 64), "flat": np.array([-1, 64]), "back": np.array([2, -1, 64])}
    shapes = {"f": ["n", 64], "p": [64, "n"], "q": ["n", 64]}
    model = graph(nodes, constants, shapes=shapes)
    before = run(model, x=X)
    quantize(model, MatMulIntegerFormat(), MatMulIntegerFormat())
    assert not {"Reshape", "Transpose"} & {*operators(model)}
    assert relative_error(run(model, x=X), before) < 0.01


def test_both_branches_of_a_subgraph_read_one_weight() -> None:
    info, inner = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 5, 64]) for name in ("z", "n")
    )
    branches = {
        "then_branch": [node("MatMul", ["x", "w"], ["z"])],
        "else_branch": [node("Neg", ["x"], ["n"]), node("MatMul", ["n", "w"], ["z"])],
    }
    graphs = {
        key: helper.make_graph(nodes, key, [], [info], value_info=[inner])
        for key, nodes in branches.items()
    }
    model = graph(
        [node("If", ["flag"], ["y"], **graphs)],
        {"w": random(64, 64)},
        {"x": [2, 5, 64], "flag": []},
        types={"flag": TensorProto.BOOL},
    )
    before = [run(model, x=X, flag=np.array(flag)) for flag in (True, False)]
    step = quantize(model, MatMulIntegerFormat(), MatMulIntegerFormat())
    assert step.changed == 2
    assert [name for name, array in arrays(model).items() if array.size >= 4096] == ["w"]
    for flag, expected in zip((True, False), before, strict=True):
        assert relative_error(run(model, x=X, flag=np.array(flag)), expected) < 0.01


def test_an_old_opset_is_refused() -> None:
    model = graph([node("MatMul", ["x", "w"], ["y"])], {"w": random(64, 64)}, opset=17)
    with pytest.raises(QuantizeError, match=r"opset is 17 .* need 18"):
        quantize(model, MatMulIntegerFormat(), MatMulIntegerFormat())


def test_linear_operators_of_other_models_decide_the_layout_of_an_embedding() -> None:
    for others, shape in (((), (TOKENS, 64)), (["embedding"], (1, 64, TOKENS))):
        model = graph(
            [node("Gather", ["embedding", "ids"], ["y"])],
            {"embedding": weights(TOKENS, 64)},
            {"ids": ["batch", "sequence"]},
            types={"ids": TensorProto.INT64},
        )
        quantize(model, MatMulIntegerFormat(), MatMulIntegerFormat(), linear_in_others=others)
        assert arrays(model)["embedding"].shape == shape
