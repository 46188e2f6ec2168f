"""What adapters add to a linear layer runs as one node, of any rank."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from kernel_models import build_model, nodes_taken, open_session
from onnx import helper

RANDOM = np.random.default_rng(0)
IN, OUT = 70, 1100


def build(*, constant: bool = False, read_again: bool = False, optional: bool = True) -> bytes:
    """``z = y + (x A) B``, where A and B have an empty default."""
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["small"]),
        helper.make_node("MatMul", ["small", "B"], ["update"]),
        helper.make_node("Add", ["y", "update"], ["z"]),
    ]
    rank = 3 if constant else 0
    defaults = {"A": np.ones((IN, rank), np.float32), "B": np.ones((rank, OUT), np.float32)}
    inputs = {
        "x": (np.float32, ["batch", "sequence", IN]),
        "y": (np.float32, ["batch", "sequence", OUT]),
    }
    if not constant:
        inputs |= {"A": (np.float32, [IN, "rank"]), "B": (np.float32, ["rank", OUT])}
    model = onnx.load_from_string(build_model(nodes, defaults if optional else {}, inputs))
    if read_again:
        model.graph.output.append(helper.make_empty_tensor_value_info("small"))
    data: bytes = model.SerializeToString()
    return data


def random(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def feeds(tokens: int) -> dict[str, np.ndarray]:
    return {"x": random(2, tokens, IN), "y": random(2, tokens, OUT)}


@pytest.mark.parametrize("rank", [0, 1, 4, 8, 15, 16, 17, 48, 100])
def test_every_rank_and_number_of_tokens(rank: int) -> None:
    session = open_session(build(), threads=2)
    assert nodes_taken(session) == 3
    for tokens in (0, 1, 2, 4, 7, 8, 33):
        arrays = feeds(tokens)
        a, b = random(IN, rank), random(rank, OUT)
        (result,) = session.run(None, arrays | {"A": a, "B": b})
        exact = arrays["y"] + arrays["x"].astype(np.float64) @ a @ b
        np.testing.assert_allclose(result, exact, rtol=0, atol=2e-5 * (1 + rank))


@pytest.mark.parametrize("rank", [3, 16, 48])
def test_few_tokens_have_the_results_of_single_ones(rank: int) -> None:
    session, arrays = open_session(build(), threads=2), feeds(5)
    matrices = {"A": random(IN, rank), "B": random(rank, OUT)}
    (all_at_once,) = session.run(None, {n: a[:1] for n, a in arrays.items()} | matrices)
    for token in range(5):
        single = {name: array[:1, token : token + 1] for name, array in arrays.items()}
        (result,) = session.run(None, single | matrices)
        np.testing.assert_array_equal(result[0, 0], all_at_once[0, token])


def test_without_an_adapter_nothing_is_added() -> None:
    arrays = feeds(5)
    (result,) = open_session(build()).run(None, arrays)
    np.testing.assert_array_equal(result, arrays["y"])


def test_matrices_that_do_not_fit_are_an_error() -> None:
    for options in ({}, {"optional": False}):
        session = open_session(build(**options))
        matrices = {"A": random(IN, 3), "B": random(4, OUT)}
        with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match="do not fit"):
            session.run(None, feeds(2) | matrices)


@pytest.mark.parametrize("change", [{"constant": True}, {"read_again": True}])
def test_others_are_left_to_onnxruntime(change: dict[str, bool]) -> None:
    assert nodes_taken(open_session(build(**change))) == 0
