"""MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

import numpy as np
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
from quantized_values import dequantized
from small_graphs import random, run

from edgetie.quantize.formats.matmul_nbits import MatMulNBitsFormat
from edgetie.quantize.weights.affine import QuantizedValues, QuantSpec, round_to_nearest


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("width", [64, 70, 48])
def test_a_tied_embedding_is_one_initializer(bits: int, block: int | None, width: int) -> None:
    embedding = weights(TOKENS, width)
    model = tied(embedding)
    weight_format = MatMulNBitsFormat(bits, block)
    step = quantize(model, weight_format, weight_format)
    spec = weight_format.spec(width)
    blocks = spec.block_count(width)
    assert spec.block is not None
    stored = arrays(model)
    assert stored["embedding"].shape == (TOKENS, blocks, spec.block * bits // 8)
    aliases = {
        f"embedding.{part}.gather": f"embedding.{part}" for part in ("scales", "zero_points")
    }
    if bits == 4:  # GatherBlockQuantized reads their zero points one in a byte
        del aliases["embedding.zero_points.gather"]
    assert step.aliases == aliases
    assert step.block_sizes == {str(spec.block): 1}
    # the same numbers in numpy
    matrix = dequantized(round_to_nearest(embedding, spec), spec, width)
    assert relative_error(run(model, ids=IDS), embedding[IDS] @ embedding.T) < 0.3
    assert relative_error(run(model, ids=IDS), matrix[IDS] @ matrix.T) < 0.01


@pytest.mark.parametrize("bits", [8, 4])
def test_gathered_rows_are_those_of_numpy(bits: int) -> None:
    embedding = weights(TOKENS, 70)
    model = tied(embedding)
    quantize(model, weight_format := MatMulNBitsFormat(bits), weight_format)
    spec = weight_format.spec(70)
    gather = next(each for each in model.graph if each.op_type == "Slice").outputs[0]
    model.graph.outputs[0].name = "logits"
    gather.name = "y"
    model.graph.outputs.append(gather)
    matrix = dequantized(round_to_nearest(embedding, spec), spec, 70)
    np.testing.assert_allclose(run(model, ids=IDS), matrix[IDS], atol=1e-6)


@pytest.mark.parametrize(("block", "then"), [(None, 64), (32, 32), (16, 16)])
def test_the_higher_precision_has_the_blocks_that_were_asked_for(
    block: int | None, then: int
) -> None:
    higher = MatMulNBitsFormat(4, block, supports_rotation=False).higher_precision()
    assert higher is not None
    assert higher.spec(128) == MatMulNBitsFormat(8, then).spec(128)
    assert not higher.supports_rotation
    highest = higher.higher_precision()
    assert (highest and highest.spec(128).block) == (16 if then > 16 else None)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("opset", [17, 21])
def test_exact_inputs_are_hardly_rounded(bias: bool, opset: int) -> None:
    offset = random(OUT, seed=5) * 10 if bias else None
    model = linear(random(128, OUT), (2, 3), offset)
    model.graph.opset_imports[""] = opset
    quantize(model, MatMulNBitsFormat(), MatMulNBitsFormat())
    stored = arrays(model)
    quantized = QuantizedValues(
        stored["w"].reshape(OUT, 128), stored["w.T.scales"], stored["w.T.zero_points"]
    )
    matrix = dequantized(quantized, QuantSpec(8, 64, asymmetric=True), 128)
    x = random(2, 3, 128, seed=1)
    x[0, 1, :64] = 0  # a block of zeros
    expected = x @ matrix.T + (0 if offset is None else offset)
    assert np.abs(run(model, x=x) - expected).max() < 1e-4 * np.abs(expected).max()
