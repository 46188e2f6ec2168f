"""Plain ONNX files with products in branches, constants in files of their own, and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetie.quantize.quantizer import quantize_model

ROWS, WIDTH = 100, 64
IDS = np.array([[1, 60, 7, 99], [3, 4, 5, 6]])
SMALL = np.array([[1, 2, 3, 4]])  # takes the other branch


def weights(*names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {n: rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8 for n in names}
    return {"table": rng.normal(size=(ROWS, WIDTH)).astype(np.float32) / 8, **made}


def write(
    path: Path, nodes: list[onnx.NodeProto], values: dict[str, np.ndarray], *, apart: bool = False
) -> Path:
    """A graph around ``nodes``, which make ``y`` of the rows ``x`` of a table that is the head."""
    whole = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        *nodes,
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["y", "turned"], ["logits"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", ROWS])
    initializers = [numpy_helper.from_array(array, name) for name, array in values.items()]
    graph = helper.make_graph(whole, "branches", [ids], [logits], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path, save_as_external_data=apart, location=f"{path.name}.data")
    return path


def product(x: str, weight: str, result: str) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(result, TensorProto.FLOAT, ["batch", "sequence", WIDTH])
    return helper.make_graph([helper.make_node("MatMul", [x, weight], [result])], result, [], [out])


def run(model: Path, ids: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {session.get_inputs()[0].name: ids})[0]


def close(found: Path, wanted: Path, ids: np.ndarray = IDS, most: float = 0.1) -> None:
    expected = run(wanted, ids)
    assert np.abs(run(found, ids) - expected).max() < most * np.abs(expected).max()


@pytest.mark.parametrize(
    "scheme", ["int8", "int8-mapped", "int8-plain", "int8-dynamic", "int8-static", "int4"]
)
def test_products_in_branches(tmp_path: Path, scheme: str) -> None:
    """They read what a product outside reads too, and one branch is chosen by a constant."""
    nodes = [
        helper.make_node("ReduceMax", ["input_ids"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "fifty"], ["large"]),
        helper.make_node(
            "If", ["large"], ["a"],
            then_branch=product("x", "w1", "then"), else_branch=product("x", "w2", "else"),
        ),
        helper.make_node("MatMul", ["x", "w3"], ["b"]),
        helper.make_node(
            "If", ["always"], ["c"],
            then_branch=product("b", "w4", "one"), else_branch=product("b", "w5", "other"),
        ),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]  # fmt: skip
    values = weights("w1", "w2", "w3", "w4", "w5")
    values |= {"fifty": np.array(50, np.int64), "always": np.array(True)}
    path = write(tmp_path / "model.onnx", nodes, values)
    report = quantize_model(path, tmp_path / "out", scheme=scheme)
    for ids in (IDS, SMALL):
        close(report.bundle.model_path, path, ids, most=0.25 if scheme == "int4" else 0.1)


@pytest.mark.parametrize("scheme", ["int8-mapped", "fp16"])
def test_small_constants_in_the_weights_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Read from beside the model, wherever one is."""
    nodes = [
        helper.make_node("Add", ["gain", "one"], ["scale"]),
        helper.make_node("Gather", ["order", "input_ids"], ["places"]),
        helper.make_node("Cast", ["places"], ["shift"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["shift", "last"], ["column"]),
        helper.make_node("Add", ["x", "column"], ["moved"]),
        helper.make_node("Mul", ["moved", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "first"], ["wide"]),
        helper.make_node("Mul", ["wide", "half"], ["y"]),
    ]
    values = weights("first") | {
        "gain": np.linspace(0, 1, WIDTH, dtype=np.float32),
        "one": np.ones(1, np.float32),
        "half": np.full(WIDTH, 0.5, np.float32),
        "order": np.arange(ROWS)[::-1] % 3,
        "last": np.array([-1]),
    }
    path = write(tmp_path / "model.onnx", nodes, values, apart=True)
    fallback_nodes = tmp_path / "elsewhere"
    fallback_nodes.mkdir()
    (fallback_nodes / "model.onnx.data").write_bytes(bytes(path.stat().st_size + (1 << 20)))
    monkeypatch.chdir(fallback_nodes)
    report = quantize_model(path, tmp_path / "out", scheme=scheme)
    close(report.bundle.model_path, path)


def test_masks_of_the_largest_number_fit_into_16_bits(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "last"], ["column"]),
        helper.make_node("Less", ["column", "five"], ["few"]),
        helper.make_node("Where", ["few", "lowest", "x"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["shares"], axis=1),
        helper.make_node("MatMul", ["shares", "w1"], ["y"]),
    ]
    values = weights("w1") | {
        "last": np.array([-1]),
        "five": np.array(5, np.float32),
        "lowest": np.array(np.finfo(np.float32).min),
    }
    path = write(tmp_path / "model.onnx", nodes, values)
    report = quantize_model(path, tmp_path / "out", scheme="int8-fp16")
    close(report.bundle.model_path, path, most=0.03)
