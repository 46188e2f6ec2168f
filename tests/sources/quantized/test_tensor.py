"""Weights as checkpoints store them."""

from __future__ import annotations

import numpy as np
import pytest

from edgetie.sources.quantized.tensor import QuantizedTensor, find_quantized


def make(
    rows: int = 6, *, bits: int = 4, block: int = 16, offsets: bool = False
) -> QuantizedTensor:
    rng = np.random.default_rng(rows)
    scales = rng.uniform(0.01, 0.1, (rows, 2)).astype(np.float16).astype(np.float32)
    return QuantizedTensor(
        bits,
        block,
        rng.integers(0, 1 << bits, (rows, 2 * block), dtype=np.uint8),
        scales,
        rng.integers(0, 1 << bits, (rows, 2), dtype=np.uint8) * (not offsets),
        rng.uniform(-1, 0, (rows, 2)).astype(np.float16).astype(np.float32) if offsets else None,
        "made",
    )


@pytest.mark.parametrize("offsets", [False, True])
def test_dequantizing(offsets: bool) -> None:
    tensor = make(offsets=offsets)
    floats = tensor.dequantize()
    for row, column in ((0, 0), (3, 17), (5, 31)):
        block = column // tensor.block
        zero = int(tensor.zero_points[row, block])
        expected = (int(tensor.values[row, column]) - zero) * tensor.scales[row, block]
        if tensor.offsets is not None:
            expected += tensor.offsets[row, block]
        assert floats[row, column] == expected


def test_selected_rows_are_those_of_the_weight() -> None:
    tensor, rows = make(offsets=True), np.array([4, 0, 5])
    np.testing.assert_array_equal(tensor.select_rows(rows).dequantize(), tensor.dequantize()[rows])


def test_centering_changes_no_value() -> None:
    tensor = make(offsets=True)
    centered = tensor.center()
    assert (centered.zero_points == 8).all()
    np.testing.assert_array_equal(centered.dequantize(), tensor.dequantize())
    plain = make()
    assert plain.center() is plain


def test_centering_is_left_out_if_a_value_would_change() -> None:
    tensor = make(offsets=True)
    assert tensor.offsets is not None
    tensor.scales[0, 0], tensor.offsets[0, 0] = 1 + 2**-12, 1e-6
    assert tensor.center() is tensor


def test_weights_are_found_by_the_end_of_their_names_and_in_merged_ones() -> None:
    tensors = {"layers.0.q.weight": make(6), "layers.0.k.weight": make(4), "k8": make(2, bits=8)}
    assert find_quantized("model.layers.0.q.weight", tensors) is tensors["layers.0.q.weight"]
    merged = find_quantized("model.layers.0.q.weight+model.layers.0.k.weight", tensors)
    assert merged is not None
    expected = [tensors[f"layers.0.{name}.weight"].dequantize() for name in "qk"]
    np.testing.assert_array_equal(merged.dequantize(), np.concatenate(expected))
    for name in ("layers.0.v.weight", "layers.0.q.weight+norm", "layers.0.q.weight+k8"):
        assert find_quantized(name, tensors) is None
