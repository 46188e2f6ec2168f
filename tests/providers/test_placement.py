"""Nodes are counted by the provider that ONNX Runtime assigned, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetie.errors import ProviderError
from edgetie.providers.placement import (
    count_nodes,
    describe_fallback,
    describe_placement,
    find_operators,
    require_placement,
    resolve_provider,
    runs_all_products,
)
from edgetie.providers.registry import PROVIDERS, find_provider

CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def session() -> Any:
    """``Abs(x @ w)``."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Abs", ["h"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=[CPU])


def test_nodes_by_provider(session: Any) -> None:
    assert count_nodes(CPU, session, None) == ({CPU: 2}, {})
    assert count_nodes(CPU, session, session) == ({CPU: 4}, {})
    nodes, fallback_nodes = count_nodes("OtherExecutionProvider", session)
    assert nodes == {CPU: 2}
    assert fallback_nodes == {"MatMul": 1, "Abs": 1}


def test_operators_of_a_provider(session: Any) -> None:
    assert find_operators(session, None) == {CPU: {"MatMul", "Abs"}}
    assert find_operators() == {}


def test_auto_is_the_cpu_provider_if_no_other_has_nodes() -> None:
    assert resolve_provider("auto", {CPU: 9}) is PROVIDERS["cpu"]
    assert resolve_provider("CPU", {}) is PROVIDERS["cpu"]
    assert resolve_provider("edgetie", {CPU: 9}) is PROVIDERS["edgetie"]
    assert resolve_provider("auto", {"EdgetieExecutionProvider": 1, CPU: 9}) is find_provider(
        "auto"
    )


def test_placement_in_words() -> None:
    nodes = {"EdgetieExecutionProvider": 7, CPU: 2}
    assert describe_placement("edgetie", nodes) == "edgetie (7 of 9 nodes)"
    assert describe_placement("cpu", {CPU: 2}) == "cpu (2 of 2 nodes)"


def test_fallback_in_words() -> None:
    assert describe_fallback({"A": 7, CPU: 2}, {"Abs": 2}) == "2 of 9 nodes to others (Abs 2)"


def test_a_provider_must_run_nodes() -> None:
    cuda, path = PROVIDERS["cuda"], Path("m.onnx")
    nodes = {"CUDAExecutionProvider": 7, CPU: 2}
    require_placement(cuda, path, nodes, {"Abs": 2}, strict=False)
    require_placement(cuda, path, {"CUDAExecutionProvider": 7}, {}, strict=True)
    with pytest.raises(ProviderError, match=r"took none of the 2 nodes of m\.onnx"):
        require_placement(cuda, path, {CPU: 2}, {"Abs": 2}, strict=False)
    with pytest.raises(ProviderError, match=r"strict: m\.onnx: cuda leaves 2 of 9") as caught:
        require_placement(cuda, path, nodes, {"Abs": 2}, strict=True)
    assert caught.value.parameter == "strict"


def test_products_that_others_run() -> None:
    own = {"MatMulNBits", "GroupQueryAttention"}
    assert runs_all_products("Own", {"Own": own, CPU: {"Add", "Gather"}})
    assert not runs_all_products("Own", {"Own": own, CPU: {"Add", "MatMul"}})
    assert not runs_all_products("Own", {"Own": {"GroupQueryAttention"}})
    assert not runs_all_products("Own", {CPU: {"Add"}})
    assert not runs_all_products("Own", {"Own": own, CPU: {"Round"}})
