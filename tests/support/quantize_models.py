"""What tests of ``quantize`` quantize and how they compare."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

KINDS = ["Llama", "Qwen3", "Gemma3Text", "GPT2", "OPT"]


LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]


def logits(
    model: Path, level: str = "ORT_ENABLE_ALL", length: int = 24, *, exact: bool = True
) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if exact:  # on x86 processors without VNNI, int8-static is not, otherwise
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(1).integers(3, models.VOCAB, (1, length))
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        if value.name == "input_ids":
            feeds[value.name] = ids
        elif value.name == "attention_mask":
            feeds[value.name] = np.ones_like(ids)
        elif value.name == "position_ids":
            feeds[value.name] = np.arange(length)[None]
        else:
            shape = [1, *(d if isinstance(d, int) else 0 for d in value.shape[1:])]
            feeds[value.name] = np.zeros(shape, np.float32)
    return session.run(["logits"], feeds)[0]


def error(a: np.ndarray, b: np.ndarray) -> float:
    """Relative error of centered logits."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(a - a.mean(-1, keepdims=True)))


def plain(
    directory: Path,
    *,
    head: str = "Gemm",
    width: int = 64,
    outliers: bool = False,
    bad: bool = False,
) -> Path:
    """An .onnx file as other exporters write it: a lookup, a layer and a tied head."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(models.VOCAB, width)).astype(np.float32)
    middle = (rng.normal(size=(width, width)) / np.sqrt(width)).astype(np.float32)
    if outliers:
        table[:, ::17] *= 30
    if bad:
        middle[3, 5] = np.nan
    gain = rng.uniform(0.5, 1.5, width).astype(np.float32)
    bias = rng.normal(size=width).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "middle"], ["m"], name="middle"),
        helper.make_node("Add", ["m", "bias"], ["y"]),
        helper.make_node("LayerNormalization", ["y", "gain", "bias"], ["h"], axis=-1),
    ]
    values = {"table": table, "middle": middle, "gain": gain, "bias": bias}
    if head == "Gemm":
        values |= {"flat": np.array([-1, width]), "back": np.array([1, -1, models.VOCAB])}
        nodes += [
            helper.make_node("Reshape", ["h", "flat"], ["f"]),
            helper.make_node("Gemm", ["f", "table"], ["g"], transB=1),
            helper.make_node("Reshape", ["g", "back"], ["logits"]),
        ]
    else:
        nodes += [
            helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["h", "t"], ["logits"]),
        ]
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, None, models.VOCAB])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = directory / "plain.onnx"
    onnx.save(model, path)
    return path
