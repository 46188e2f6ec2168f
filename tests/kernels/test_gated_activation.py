"""Split, activation and Mul run as one node, if nothing else reads what is between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_models import MICROSOFT, nodes_taken, open_session
from onnx import TensorProto, helper, numpy_helper


def build(
    activation: str = "QuickGelu",
    *,
    gate: int = 0,
    axis: int = -1,
    size: int = 10,
    sizes: tuple[int, ...] = (),
    read_again: bool = False,
) -> bytes:
    """Build ``y = activation(half of x) * other half of x`` for x (batch, sequence, size)."""
    constants = [numpy_helper.from_array(np.array(sizes), "sizes")] if sizes else []
    attributes = {"num_outputs": 2} if not sizes else {}
    values: dict[str, Any] = {"alpha": 1.0} if activation == "QuickGelu" else {}
    nodes = [
        helper.make_node("Split", ["x", "sizes"][: 1 + bool(sizes)], ["a", "b"], axis=axis,
                         **attributes),
        helper.make_node(activation, ["ab"[gate]], ["active"], domain=MICROSOFT, **values),
        helper.make_node("Mul", ["active", "ab"[1 - gate]], ["y"]),
    ]  # fmt: skip
    names = ["y", "a"] if read_again else ["y"]
    graph = helper.make_graph(
        nodes,
        "gated",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        constants,
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


def compute(x: np.ndarray, activation: str, gate: int) -> np.ndarray:
    halves = np.split(x.astype(np.float64), 2, axis=-1)
    inner, value = halves[gate], halves[1 - gate]
    if activation == "QuickGelu":
        return inner / (1 + np.exp(-inner)) * value
    tanh = np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3))
    return 0.5 * inner * (1 + tanh) * value


@pytest.mark.parametrize("activation", ["QuickGelu", "FastGelu"])
@pytest.mark.parametrize("gate", [0, 1])
@pytest.mark.parametrize("size", [2, 34, 3072])
def test_the_three_nodes_run_as_one(activation: str, gate: int, size: int) -> None:
    session = open_session(build(activation, gate=gate, size=size), threads=2)
    assert nodes_taken(session) == 3  # ONNX Runtime counts those that it replaces
    for sequence in (0, 1, 3, 50):
        x = np.random.default_rng(sequence).standard_normal((2, sequence, size)) * 5
        feeds = {"x": x.astype(np.float32)}
        (result,) = session.run(None, feeds)
        expected = compute(feeds["x"], activation, gate)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_extreme_gates_end_in_zero_or_the_gate() -> None:
    session = open_session(build(size=8))
    gates = np.float32([-1000, -20, 200, np.nan])
    x = np.concatenate([gates, np.ones(4, np.float32)]).reshape(1, 1, 8)
    (y,) = session.run(None, {"x": x})
    expected = np.float32([0, -20 / (1 + np.exp(20)), 200, np.nan])
    np.testing.assert_allclose(y[0, 0], expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    "changes", [{"axis": 1}, {"axis": 0}, {"read_again": True}, {"activation": "Gelu"}], ids=str
)
def test_other_splits_are_left_to_onnxruntime(changes: dict[str, Any]) -> None:
    assert nodes_taken(open_session(build(**changes))) == 0


def test_equal_sizes_may_be_given() -> None:
    assert nodes_taken(open_session(build(sizes=(5, 5), size=10))) == 3
