"""MatMulInteger over weights that are read in place."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
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

from edgetie.quantize.formats import matmul_integer
from edgetie.quantize.formats.matmul_integer import MatMulIntegerFormat
from edgetie.quantize.formats.weight_format import ScaleGranularity


def operators(model: ir.Model) -> list[str]:
    return [each.op_type for each in model.graph]


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 2, 5)])
@pytest.mark.parametrize("split", [False, True])
def test_activations_are_hardly_rounded(
    shape: tuple[int, ...], split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul_integer, "_LARGE", 1)
    w, bias = weights(), random(OUT)
    model = linear(w, shape, bias)
    step = quantize(model, format_ := MatMulIntegerFormat(split_matmuls=split), format_)
    assert operators(model).count("MatMulInteger") == (2 if split else 1)
    stored = arrays(model)
    assert stored["w"].dtype == np.int8
    assert stored["w"].shape == (1, 64, OUT)
    assert step.block_sizes == {"row": 1}
    # the values and scales of the file, multiplied in numpy
    largest = np.abs(w).max(axis=0)
    scales = largest / 127
    np.testing.assert_array_equal(stored["w"][0], np.rint(w / scales))
    x = random(*shape, 64, seed=3)
    x.reshape(-1, 64)[1] = 0
    exact = x @ (stored["w"][0] * scales) + bias
    assert relative_error(run(model, x=x), exact) < 1e-3
    assert relative_error(run(model, x=x), x @ w + bias) < 0.01
    np.testing.assert_allclose(run(model, x=x).reshape(-1, OUT)[1], bias, atol=1e-6)


def test_activations_are_split_once_for_all_weights_that_read_them() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("MatMul", ["x", "v"], ["b"]),
        node("Add", ["a", "b"], ["y"]),
    ]
    model = graph(nodes, {"w": random(64, 64), "v": random(64, 64, seed=1)}, opset=21)
    quantize(model, format_ := MatMulIntegerFormat(), format_)
    names = operators(model)
    assert names.count("MatMulInteger") == 2
    assert names.count("QuantizeLinear") == 2
    assert names.count("Concat") == 1


def test_a_tied_embedding_is_one_initializer() -> None:
    embedding = weights(TOKENS, 64)
    model = tied(embedding)
    before = run(model, ids=IDS)
    step = quantize(model, format_ := MatMulIntegerFormat(), format_)
    assert relative_error(run(model, ids=IDS), before) < 0.02
    large = [name for name, array in arrays(model).items() if array.size >= embedding.size]
    assert large == ["embedding"]
    assert (step.embeddings, step.linear_initializers, step.aliases) == (["embedding"], {}, {})
    # the zero point is no constant if several MatMuls may read a weight
    assert "Less" in operators(model)


def test_an_embedding_without_a_head_keeps_its_rows() -> None:
    model = graph(
        [node("Gather", ["embedding", "ids"], ["y"])],
        {"embedding": weights(TOKENS, 64)},
        {"ids": ["batch", "sequence"]},
        types={"ids": TensorProto.INT64},
        opset=21,
    )
    before = run(model, ids=IDS)
    quantize(model, format_ := MatMulIntegerFormat(), format_)
    assert operators(model) == ["GatherBlockQuantized"]
    assert arrays(model)["embedding"].dtype == np.uint8
    assert relative_error(run(model, ids=IDS), before) < 0.01


def test_inputs_of_one_axis_or_unknown_rank_stay() -> None:
    model = linear(weights(), ())
    quantize(model, format_ := MatMulIntegerFormat(), format_)
    assert operators(model) == ["MatMul"]
    assert format_.activations is ScaleGranularity.NONE
