"""Rotations of blocks of channels run as one node, with the product that follows."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_models import MICROSOFT, nodes_taken, open_session
from onnx import TensorProto, helper, numpy_helper

from edgetie.quantize.preprocess.rotate import hadamard

RANDOM = np.random.default_rng(0)


def build(
    size: int = 16,
    blocks: int = 3,
    *,
    rows: int = 0,
    bits: int = 8,
    bias: bool = False,
    matrix: np.ndarray | None = None,
    batch_size: int = 0,
    read_again: bool = False,
) -> bytes:
    """Build ``y = rotate(x)`` for x (batch, sequence, channels), times a matrix if ``rows``."""
    channels = size * blocks
    constants = {
        "split": np.array([batch_size, 0, blocks, size]),
        "matrix": np.float32(hadamard(size) if matrix is None else matrix),
        "join": np.array([0, 0, channels]),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "split"], ["apart"]),
        helper.make_node("MatMul", ["apart", "matrix"], ["turned"]),
        helper.make_node("Reshape", ["turned", "join"], ["rotated" if rows else "y"]),
    ]
    if rows:
        groups = -(-channels // 32)
        constants["values"] = RANDOM.integers(0, 256, (rows, groups, 32 * bits // 8), np.uint8)
        constants["scales"] = RANDOM.random((rows, groups)).astype(np.float32)
        constants["zeros"] = RANDOM.integers(0, 256, (rows, -(-groups * bits // 8)), np.uint8)
        constants["bias"] = RANDOM.standard_normal(rows).astype(np.float32)
        inputs = ["rotated", "values", "scales", "zeros", *["", "bias"][: 2 * bias]]
        nodes.append(
            helper.make_node("MatMulNBits", inputs, ["y"], domain=MICROSOFT, K=channels, N=rows,
                             bits=bits, block_size=32)
        )  # fmt: skip
    names = ["y", "rotated"] if read_again else ["y"]
    graph = helper.make_graph(
        nodes,
        "rotation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", channels])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


def assert_same(model: bytes, channels: int, taken: int, error: float = 1e-6) -> None:
    session, reference = open_session(model, threads=2), open_session(model, plugin=False)
    assert nodes_taken(session) == taken
    for sequence in (0, 1, 3, 70):
        feeds = {"x": RANDOM.standard_normal((2, sequence, channels)).astype(np.float32)}
        for result, expected in zip(
            session.run(None, feeds), reference.run(None, feeds), strict=True
        ):
            scale = np.abs(expected).max(initial=1)
            np.testing.assert_allclose(result, expected, rtol=0, atol=error * scale)


@pytest.mark.parametrize("size", [2, 16, 64, 512])
def test_a_rotation_alone_is_one_node(size: int) -> None:
    assert_same(build(size), size * 3, taken=3)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_part_of_it(bits: int, bias: bool) -> None:
    assert_same(build(64, 9, rows=40, bits=bits, bias=bias), 576, taken=4, error=2e-4)


def test_rotated_values_that_are_read_again_stay() -> None:
    assert_same(build(32, 2, rows=8, read_again=True), 64, taken=4, error=2e-4)


@pytest.mark.parametrize(
    "matrix", [np.eye(16), hadamard(16)[::-1], np.abs(hadamard(16))], ids=["one", "swapped", "all"]
)
def test_other_matrices_are_left_to_onnxruntime(matrix: np.ndarray) -> None:
    assert_same(build(matrix=matrix.astype(np.float32)), 48, taken=0)


def test_other_shapes_are_left_to_onnxruntime() -> None:
    assert_same(build(batch_size=2), 48, taken=0)
