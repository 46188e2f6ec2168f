"""Offsets of blocks: products, rows and whole weights are those of the checkpoint's weight."""

from __future__ import annotations

import numpy as np
import pytest
from quantized_graphs import IDS, IN, OUT, TOKENS, arrays, linear, quantize, tied
from small_graphs import graph, node, random, run

from edgetie.quantize.formats.matmul_nbits import MatMulNBitsFormat
from edgetie.sources.quantized.tensor import QuantizedTensor

FORMAT = MatMulNBitsFormat()


def stored(rows: int, columns: int, bits: int = 4) -> QuantizedTensor:
    rng = np.random.default_rng(rows)
    shape = rows, columns // 32
    return QuantizedTensor(
        bits,
        32,
        rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8),
        rng.uniform(0.005, 0.02, shape).astype(np.float32),
        np.zeros(shape, np.uint8),
        rng.uniform(-0.2, 0.1, shape).astype(np.float32),
        "made",
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("leading", [(7,), (2, 5), (1, 1)])
def test_a_product(bits: int, leading: tuple[int, ...]) -> None:
    tensor = stored(OUT, IN, bits)
    weight, x = tensor.dequantize(), random(*leading, IN)
    model = linear(np.ascontiguousarray(weight.T), leading)
    quantize(model, FORMAT, FORMAT, stored={"w": tensor})
    values = arrays(model)
    np.testing.assert_array_equal(values["w.T.offsets"], tensor.offsets)
    difference = np.abs(run(model, x=x) - x @ weight.T).max()
    assert difference < 2e-2 * np.abs(x @ weight.T).max()  # activations have 8 bits


@pytest.mark.parametrize("bits", [4, 8])
def test_a_tied_table_has_its_offsets_once(bits: int) -> None:
    tensor = stored(TOKENS, 64, bits)
    table = tensor.dequantize()
    model = tied(table)
    quantize(model, FORMAT, FORMAT, stored={"embedding": tensor})
    assert [n for n in arrays(model) if n.endswith("offsets")] == ["embedding.offsets"]
    logits = table[IDS] @ table.T
    assert np.abs(run(model, ids=IDS) - logits).max() < 2e-2 * np.abs(logits).max()


def test_rows_are_looked_up_without_an_error() -> None:
    tensor = stored(TOKENS, 64)
    model = graph(
        [node("Gather", ["table", "ids"], ["y"])],
        {"table": tensor.dequantize()},
        {"ids": [2, 4]},
        [2, 4, 64],
        types={"ids": 7},
        opset=21,
    )
    quantize(model, FORMAT, FORMAT, stored={"table": tensor})
    np.testing.assert_array_equal(run(model, ids=IDS), tensor.dequantize()[IDS])


def test_a_weight_that_others_read_as_a_whole() -> None:
    tensor = stored(OUT, IN, 8)
    weight, x = tensor.dequantize(), random(5, IN)
    model = graph(
        [
            node("MatMul", ["x", "w"], ["product"]),
            node("Mul", ["w", "w"], ["squares"]),
            node("ReduceSum", ["squares", "axes"], ["sum"], keepdims=0),
            node("Add", ["product", "sum"], ["y"]),
        ],
        {"w": np.ascontiguousarray(weight.T), "axes": np.array([0])},
        {"x": [5, IN]},
        [5, OUT],
        opset=21,
    )
    step = quantize(model, FORMAT, FORMAT, stored={"w": tensor})
    assert step.dequantized == {"w": "Mul"}
    expected = x @ weight.T + (weight**2).sum(axis=1)
    assert np.abs(run(model, x=x) - expected).max() < 2e-2 * np.abs(expected).max()
