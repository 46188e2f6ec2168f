"""Rotation that costs nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetie.passes.gemm_to_matmul import GemmToMatMul
from edgetie.passes.run import run_passes
from edgetie.quantize.preprocess.linear_inputs import find_linear_inputs
from edgetie.quantize.preprocess.rotate import Rotate


def run(model: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(["logits"], feeds)[0]


def attention_model(path: Path, *, packed: bool, bias: bool) -> None:
    """Q, K and V of 16 channels, 4 heads over 2, one attention, one projection behind it."""
    rng = np.random.default_rng(0)
    names = ["qkv"] if packed else ["q", "k", "v"]
    widths = dict(zip(names, [128] if packed else [64, 32, 32], strict=True))
    values = {
        n: rng.normal(size=(16, width)).astype(np.float32) * 0.3 for n, width in widths.items()
    }
    values["out"] = rng.normal(size=(64, 16)).astype(np.float32)
    nodes = []
    for name in names:
        made = f"{name}.made" if bias else f"{name}.states"
        nodes.append(helper.make_node("MatMul", ["x", name], [made]))
        if bias:
            values[f"{name}.bias"] = rng.normal(size=widths[name]).astype(np.float32)
            nodes.append(helper.make_node("Add", [made, f"{name}.bias"], [f"{name}.states"]))
    inputs = ["qkv.states", "", ""] if packed else ["q.states", "k.states", "v.states"]
    nodes += [
        helper.make_node(
            "GroupQueryAttention", [*inputs, "past_key", "past_value", "last", "total"],
            ["sums", "present_key", "present_value"],
            domain="com.microsoft", num_heads=4, kv_num_heads=2,
        ),
        helper.make_node("MatMul", ["sums", "out"], ["logits"]),
    ]  # fmt: skip
    cache = ["batch", 2, "past", 16]
    floats = {"x": ["batch", "sequence", 16], "past_key": cache, "past_value": cache}
    inputs_info = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in floats.items()
    ]
    inputs_info += [
        helper.make_tensor_value_info("last", TensorProto.INT32, ["batch"]),
        helper.make_tensor_value_info("total", TensorProto.INT32, [1]),
    ]
    outputs = {"logits": ["batch", "sequence", 16], "present_key": cache, "present_value": cache}
    graph = helper.make_graph(
        nodes,
        "attention",
        inputs_info,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_values_are_rotated_without_a_node(tmp_path: Path, packed: bool, bias: bool) -> None:
    attention_model(tmp_path / "before.onnx", packed=packed, bias=bias)
    model = ir.load(tmp_path / "before.onnx")
    run_passes(model, [], [GemmToMatMul()])
    nodes = len(model.graph)
    rotate = Rotate([name for name in find_linear_inputs(model) if name == "sums"])
    run_passes(model, [], [rotate])
    ir.save(model, tmp_path / "after.onnx")
    assert (rotate.changed, rotate.folded, len(model.graph)) == (1, 1, nodes)
    x = np.random.default_rng(1).normal(size=(1, 5, 16)).astype(np.float32)
    empty = np.zeros((1, 2, 0, 16), np.float32)
    feeds = {
        "x": x, "past_key": empty, "past_value": empty,
        "last": np.array([4], np.int32), "total": np.array([5], np.int32),
    }  # fmt: skip
    before, after = (run(tmp_path / f"{name}.onnx", feeds) for name in ("before", "after"))
    np.testing.assert_allclose(after, before, atol=1e-4)
    weights = {"before": ir.load(tmp_path / "before.onnx"), "after": model}
    changed = {n: m.graph.initializers["out"].const_value.numpy() for n, m in weights.items()}  # type: ignore[union-attr]
    assert not np.allclose(changed["before"], changed["after"])
