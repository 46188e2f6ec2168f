"""MatMulNBits runs as one node with the norm or gated activation, and the rotation, before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from kernel_models import MICROSOFT, open_session
from onnx import TensorProto, helper, numpy_helper

from edgetie.quantize.preprocess.rotate import hadamard

RANDOM = np.random.default_rng(0)
CHANNELS, ROWS = 96, 40
PREPARATIONS = ("none", "rms", "skip", "gate")


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def build(
    preparation: str,
    *,
    rotated: bool = False,
    bits: int = 8,
    read_again: bool = False,
    parts: bool = False,
    biased: bool = True,
) -> bytes:
    """Build ``y``: x (batch, sequence, channels) prepared, times a matrix; ``sum`` of a skip.

    With ``parts`` the product is that of a rounded part and of the rest, added.
    """
    constants: dict[str, Any] = {
        "gain": floats(CHANNELS),
        "bias": floats(CHANNELS),
        "split": np.array([0, 0, 3, 32]),
        "matrix": hadamard(32).astype(np.float32),
        "join": np.array([0, 0, CHANNELS]),
        "values": RANDOM.integers(0, 256, (ROWS, 3, 32 * bits // 8), np.uint8),
        "scales": RANDOM.random((ROWS, 3)).astype(np.float32),
        "shift": floats(ROWS),
    }
    nodes = {
        "none": [],
        "rms": [helper.make_node("RMSNormalization", ["x", "gain"], ["ready"], axis=-1)],
        "skip": [
            helper.make_node("SkipSimplifiedLayerNormalization", ["x", "skip", "gain", "bias"],
                             ["ready", "", "", "sum"], domain=MICROSOFT),
        ],
        "gate": [
            helper.make_node("Split", ["x"], ["a", "b"], axis=-1, num_outputs=2),
            helper.make_node("QuickGelu", ["b"], ["active"], domain=MICROSOFT, alpha=1.0),
            helper.make_node("Mul", ["active", "a"], ["ready"]),
        ],
    }[preparation]  # fmt: skip
    ready = "ready" if nodes else "x"
    if rotated:
        nodes += [
            helper.make_node("Reshape", [ready, "split"], ["apart"]),
            helper.make_node("MatMul", ["apart", "matrix"], ["turned"]),
            helper.make_node("Reshape", ["turned", "join"], ["rotated"]),
        ]
        ready = "rotated"
    if parts:
        constants |= {"unit": np.float32(0.125), "inverse": np.float32(8)}
        nodes += [
            helper.make_node("Mul", [ready, "inverse"], ["units"]),
            helper.make_node("Round", ["units"], ["whole"]),
            helper.make_node("Mul", ["whole", "unit"], ["part"]),
            helper.make_node("Sub", [ready, "part"], ["rest"]),
            helper.make_node("Concat", ["part", "rest"], ["both"], axis=1),
        ]
    weights = ["values", "scales", *["", "", "shift"][: 3 * biased]]
    nodes.append(
        helper.make_node("MatMulNBits", ["both" if parts else ready, *weights],
                         ["products" if parts else "y"], domain=MICROSOFT, K=CHANNELS, N=ROWS,
                         bits=bits, block_size=32)
    )  # fmt: skip
    if parts:
        nodes += [
            helper.make_node("Split", ["products"], ["first", "second"], axis=1, num_outputs=2),
            helper.make_node("Add", ["first", "second"], ["y"]),
        ]
    sizes = {"x": CHANNELS * (2 if preparation == "gate" else 1)}
    sizes |= {"skip": CHANNELS} if preparation == "skip" else {}
    names = ["y", *["sum"] * (preparation == "skip"), *["ready"] * read_again]
    graph = helper.make_graph(
        nodes,
        "product",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "sequence", size])
            for name, size in sizes.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("read_again", [False, True])
@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_the_results_are_onnxruntimes(
    preparation: str, read_again: bool, rotated: bool, bits: int
) -> None:
    read_again = read_again and preparation != "none"
    assert_same(build(preparation, rotated=rotated, bits=bits, read_again=read_again))


def assert_same(model: bytes) -> None:
    session, reference = open_session(model, threads=2), open_session(model, plugin=False)
    for batch, sequence in ((1, 1), (3, 2), (2, 0), (1, 9), (2, 400)):
        feeds = {
            value.name: floats(batch, sequence, value.shape[-1]) for value in session.get_inputs()
        }
        results = zip(session.run(None, feeds), reference.run(None, feeds), strict=True)
        for result, expected in results:
            scale = np.abs(expected).max(initial=1)
            np.testing.assert_allclose(result, expected, rtol=0, atol=2e-4 * scale)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_a_token_has_the_same_result_with_a_few_others(preparation: str, bits: int) -> None:
    """To the last bit, so that proposed tokens are verified with the numbers of single ones."""
    session = open_session(build(preparation, rotated=True, bits=bits), threads=2)
    feeds = {info.name: floats(1, 5, info.shape[-1]) for info in session.get_inputs()}
    together = session.run(None, feeds)
    for token in range(5):
        alone = session.run(None, {name: x[:, token : token + 1] for name, x in feeds.items()})
        for one, several in zip(alone, together, strict=True):
            assert np.array_equal(one[:, 0], several[:, token])


@pytest.mark.parametrize(
    ("preparation", "rotated"),
    [("none", True), ("rms", False), ("skip", True), ("gate", True), ("gate", False)],
)
def test_all_of_it_is_one_node(preparation: str, rotated: bool) -> None:
    session = open_session(build(preparation, rotated=rotated))
    (part,) = session.get_provider_graph_assignment_info()
    counts = {"none": 0, "rms": 1, "skip": 1, "gate": 3}
    assert len(part.get_nodes()) == counts[preparation] + 3 * rotated + 1


@pytest.mark.parametrize("preparation", PREPARATIONS)
@pytest.mark.parametrize("rotated", [False, True])
def test_two_parts_are_multiplied_at_once(preparation: str, rotated: bool) -> None:
    model = build(preparation, rotated=rotated, parts=True, biased=False)
    assert_same(model)
    (part,) = open_session(model).get_provider_graph_assignment_info()
    counts = {"none": 0, "rms": 1, "skip": 1, "gate": 3}
    assert len(part.get_nodes()) == counts[preparation] + 3 * rotated + 8


def test_two_parts_with_a_bias_have_it_twice() -> None:
    assert_same(build("rms", parts=True))


def test_two_parts_that_are_read_again_stay() -> None:
    assert_same(build("rms", parts=True, biased=False, read_again=True))


def test_a_product_of_the_sum_alone_takes_the_sum() -> None:
    model = onnx.load_from_string(build("skip"))
    (product,) = (node for node in model.graph.node if node.op_type == "MatMulNBits")
    product.input[0] = "sum"
    del model.graph.output[1]
    assert_same(model.SerializeToString())


def test_a_skip_that_repeats_for_each_batch_item() -> None:
    model = build("skip", rotated=True)
    session, reference = open_session(model, threads=2), open_session(model, plugin=False)
    feeds = {"x": floats(4, 300, CHANNELS), "skip": floats(1, 300, CHANNELS)}
    for result, expected in zip(session.run(None, feeds), reference.run(None, feeds), strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_a_wrong_skip_is_a_clear_error() -> None:
    session = open_session(build("skip"))
    feeds = {"x": floats(1, 3, CHANNELS), "skip": floats(1, 2, CHANNELS)}
    with pytest.raises(Exception, match="skip does not fit the input"):
        session.run(None, feeds)
