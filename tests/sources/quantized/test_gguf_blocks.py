"""Each type of GGUF: values, scales and offsets give what the gguf package computes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf_files import quantized_rows

from edgetie.sources.quantized.gguf_blocks import split_blocks

TYPES = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS",
]  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_every_value_is_that_of_the_gguf_package(kind: str) -> None:
    rng = np.random.default_rng(0)
    rows = quantized_rows(kind, rng.standard_normal((32, 512)).astype(np.float32), rng)
    tensor = split_blocks(kind, rows)
    assert tensor is not None
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(tensor.dequantize(), expected)
    assert tensor.values.max() < 1 << tensor.bits
    assert tensor.values.std() > 0
    assert tensor.type == kind
    assert tensor.block in (16, 32)


def test_other_types_are_not_read() -> None:
    assert split_blocks("IQ2_XXS", np.zeros((1, 66), np.uint8)) is None
