"""QuantizeLinear and DequantizeLinear around MatMuls."""

from __future__ import annotations

from collections import Counter

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
from small_graphs import graph, node, random, run

from edgetie.quantize.formats.qdq import LinearOpRanges, QdqFormat
from edgetie.quantize.formats.weight_format import ScaleGranularity


def operators(model: ir.Model) -> Counter[str]:
    return Counter(each.op_type for each in model.graph)


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.02), (16, 0.01)])
def test_inputs_and_wide_outputs_are_quantized_with_fixed_ranges(bits: int, limit: float) -> None:
    w, bias, x = weights(), random(OUT), random(2, 5, 64, seed=3)
    expected = x @ w
    output = (float(expected.min()), float(expected.max())) if bits == 16 else None
    ranges = {"w": LinearOpRanges((float(x.min()), float(x.max())), output)}
    model = linear(w, bias=bias)
    quantize(model, QdqFormat(bits, ranges), QdqFormat(bits, ranges, embedding=True))
    pairs = 1 if bits == 8 else 2
    assert operators(model) == {
        "QuantizeLinear": pairs, "DequantizeLinear": pairs + 1, "MatMul": 1, "Add": 1,
    }  # fmt: skip
    assert relative_error(run(model, x=x), expected + bias) < limit
    stored = arrays(model)
    assert (stored["w"].dtype, stored["w"].shape) == (np.int8, (64, OUT))
    margin = 1.0 if bits == 8 else 1.5
    steps = (1 << bits) - 1
    np.testing.assert_allclose(stored["w.T.input.scale"], margin * np.ptp(x) / steps, rtol=1e-6)
    assert stored["w.T.input.zero_point"].dtype == np.dtype(f"uint{bits}")


def test_zero_stays_exact_if_the_range_does_not_contain_it() -> None:
    ranges = {"w": LinearOpRanges((2.0, 5.0))}
    model = linear(weights())
    quantize(model, QdqFormat(8, ranges), QdqFormat(8, ranges, embedding=True))
    assert arrays(model)["w.T.input.zero_point"] == 0
    assert not run(model, x=np.zeros((2, 5, 64), np.float32)).any()


def test_a_tied_embedding_is_one_initializer() -> None:
    embedding = weights(TOKENS, 64)
    ranges = {"embedding": LinearOpRanges((float(embedding.min()), float(embedding.max())))}
    model = tied(embedding)
    before = run(model, ids=IDS)
    quantize(model, QdqFormat(8, ranges), QdqFormat(8, ranges, embedding=True))
    stored = arrays(model)
    assert [name for name, array in stored.items() if array.size >= embedding.size] == ["embedding"]
    assert stored["embedding"].shape == embedding.shape
    assert operators(model)["Gather"] == 2  # values and scales
    assert relative_error(run(model, ids=IDS), before) < 0.02


def test_each_matmul_of_a_weight_has_initializers_over_the_same_bytes() -> None:
    model = graph(
        [
            node("MatMul", ["x", "w"], ["a"]),
            node("Relu", ["x"], ["r"]),
            node("MatMul", ["r", "w"], ["b"]),
            node("Add", ["a", "b"], ["y"]),
        ],
        {"w": random(64, 64)},
        opset=21,
    )
    x = random(2, 5, 64, seed=3)
    before = run(model, x=x)
    step = quantize(model, QdqFormat(8, {}), QdqFormat(8, {}, embedding=True))
    assert step.aliases == {"w.T.values.1": "w", "w.T.zero_points.1": "w.T.zero_points"}
    stored = arrays(model)
    np.testing.assert_array_equal(stored["w"], stored["w.T.values.1"])
    assert operators(model)["DequantizeLinear"] == 2  # no ranges: activations stay float
    assert relative_error(run(model, x=x), before) < 0.01


def test_linear_operators_in_subgraphs_stay() -> None:
    info = helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 5, 64])
    branches = {
        key: helper.make_graph([inner], key, [], [info])
        for key, inner in (
            ("then_branch", node("MatMul", ["x", "w"], ["z"])),
            ("else_branch", node("Neg", ["x"], ["z"])),
        )
    }
    model = graph(
        [node("If", ["flag"], ["y"], **branches)],
        {"w": random(64, 64)},
        {"x": [2, 5, 64], "flag": []},
        types={"flag": TensorProto.BOOL},
        opset=21,
    )
    step = quantize(model, QdqFormat(8, {}), QdqFormat(8, {}, embedding=True))
    assert step.skipped == ["w: used by MatMul"]
    assert not step.changed


def test_wide_activations_are_not_rotated() -> None:
    assert QdqFormat(8, {}).supports_rotation
    assert not QdqFormat(16, {}).supports_rotation
    assert QdqFormat(8, {}).activations is ScaleGranularity.TENSOR
    assert QdqFormat(16, {}).activations is ScaleGranularity.NONE
