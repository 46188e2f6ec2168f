"""A decoder small enough to compute in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCAB, WIDTH, SCALE = 96, 64, 0.25


def table(seed: int = 0, vocab: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(vocab, WIDTH)).astype(np.float32)


def write_decoder(directory: Path, weights: np.ndarray, *, cached: bool = True) -> Path:
    """An ONNX decoder whose logits are ``SCALE * (sum of embeddings so far) @ weightsᵀ``."""
    tied = numpy_helper.from_array(weights, "weights")
    constants = [
        numpy_helper.from_array(np.array(value, kind), name)
        for name, value, kind in (
            ("one", [1], np.int64), ("two", [2], np.int64), ("axis", 2, np.int64),
            ("end", [1 << 40], np.int64), ("scale", SCALE, np.float32),
        )
    ]  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Gather", ["weights", "input_ids"], ["embedded"], "lookup"),
        node("Unsqueeze", ["embedded", "one"], ["new"]),
        node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], axis=2),
        node("Concat", ["past_key_values.0.value", "new"], ["present.0.value"], axis=2),
        node("CumSum", ["present.0.value" if cached else "new", "axis"], ["sums"]),
        node("Shape", ["input_ids"], ["count"], start=1, end=2),
        node("Neg", ["count"], ["start"]),
        node("Slice", ["sums", "start", "end", "two"], ["last"]),
        node("Squeeze", ["last", "one"], ["hidden"]),
        node("Mul", ["hidden", "scale"], ["scaled"]),
        node("Transpose", ["weights"], ["head"], perm=[1, 0]),
        node("MatMul", ["scaled", "head"], ["logits"], "head_product"),
    ]
    info, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    inputs = [info("input_ids", TensorProto.INT64, ["b", "s"])]
    inputs += [info("attention_mask", TensorProto.INT64, ["b", "t"])]
    outputs = [info("logits", kind, ["b", "s", len(weights)])]
    if cached:
        for name in ("key", "value"):
            inputs.append(info(f"past_key_values.0.{name}", kind, ["b", 1, "p", WIDTH]))
            outputs.append(info(f"present.0.{name}", kind, ["b", 1, "t", WIDTH]))
    else:
        nodes = [each for each in nodes if each.op_type != "Concat"]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, [tied, *constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(directory / "model.onnx"))
    return directory / "model.onnx"


class NaiveReference:
    """The same model in numpy, in float64."""

    name = "naive"

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights.astype(np.float64)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        hidden = np.cumsum(self.weights[ids[0]], axis=0) * SCALE
        return (hidden @ self.weights.T).astype(np.float32)

    def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
        tokens = list(prompt_ids)
        for _ in range(n):
            tokens.append(int(self.logits(np.array([tokens]))[-1].argmax()))
        return tokens[len(prompt_ids) :]
