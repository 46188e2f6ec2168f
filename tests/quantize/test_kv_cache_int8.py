"""GroupQueryAttention with an int8 cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from small_graphs import graph, node, random

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import QuantizeError
from edgetie.passes.base import run_passes
from edgetie.quantize.calibration.layerwise_run import CalibrationInput
from edgetie.quantize.kv_cache_int8 import QuantizeKvCache, kv_cache_scales

HEADS, KV_HEADS, SIZE = 4, 2, 16
PAST = ["past_key_values.0.key", "past_key_values.0.value"]
PRESENT = ["present.0.key", "present.0.value"]


def attention_model() -> ir.Model:
    """An embedding, one attention with a cache, and logits."""
    cache = ["batch", KV_HEADS, "past_length", SIZE]
    width = (HEADS + 2 * KV_HEADS) * SIZE
    types = dict.fromkeys(["input_ids", "attention_mask"], TensorProto.INT64)
    model = graph(
        [
            node("Gather", ["embedding", "input_ids"], ["hidden"]),
            node("MatMul", ["hidden", "qkv"], ["packed"]),
            node("ReduceSum", ["attention_mask", "axis"], ["lengths"], keepdims=0),
            node("Sub", ["lengths", "axis"], ["lasts"]),
            node("Cast", ["lasts"], ["last"], to=TensorProto.INT32),
            node("Shape", ["attention_mask"], ["size"], start=1),
            node("Cast", ["size"], ["total"], to=TensorProto.INT32),
            helper.make_node(
                "GroupQueryAttention",
                ["packed", "", "", *PAST, "last", "total"],
                ["y", *PRESENT],
                domain="com.microsoft", num_heads=HEADS, kv_num_heads=KV_HEADS,
            ),
        ],
        {"embedding": random(50, 64), "qkv": random(64, width) / 4, "axis": np.array([1])},
        {
            "input_ids": ["batch", "sequence"], "attention_mask": ["batch", "total_length"],
            **dict.fromkeys(PAST, cache),
        },
        ["batch", "sequence", 64],
        types=types,
        opset=21,
    )  # fmt: skip
    attention = model.graph.node(7)
    for value in attention.outputs[1:]:
        value.shape = ir.Shape(["batch", KV_HEADS, "total_length", SIZE])
        value.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(value)
    return model


def saved(model: ir.Model, directory: Path) -> Path:
    model.graph.outputs[0].name = "logits"
    ir.save(model, directory / "model.onnx")
    return directory / "model.onnx"


def run(path: Path, ids: np.ndarray, past: list[np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": np.ones((1, past[0].shape[2] + ids.shape[1]), np.int64),
        **dict(zip(PAST, past, strict=True)),
    }
    return list(session.run(None, feeds))


def test_scales_cover_the_calibration_text_and_the_cache_becomes_int8(tmp_path: Path) -> None:
    model = attention_model()
    path = saved(model, tmp_path)
    ids = np.random.default_rng(0).integers(0, 50, (1, 40))
    empty = [np.zeros((1, KV_HEADS, 0, SIZE), np.float32)] * 2
    logits, *cache = run(path, ids, empty)

    bundle = open_bundle(path)
    scales = kv_cache_scales(bundle, model, path, CalibrationInput(ids[0].tolist()))
    assert list(scales) == PRESENT
    for name, values in zip(PRESENT, cache, strict=True):
        expected = np.abs(values).max(axis=2, keepdims=True) * 1.2 / 127
        np.testing.assert_allclose(scales[name], expected, rtol=1e-5)

    step = QuantizeKvCache(scales)
    run_passes(model, [], [step])
    assert step.changed == 1
    written = tmp_path / "int8"
    written.mkdir()
    quantized = saved(model, written)
    assert [value.dtype for value in model.graph.inputs[2:]] == [ir.DataType.INT8] * 2
    assert [value.dtype for value in model.graph.outputs[1:]] == [ir.DataType.INT8] * 2
    past = [array.astype(np.int8) for array in empty]
    found, *codes = run(quantized, ids, past)
    for name, values, quantized_values in zip(PRESENT, cache, codes, strict=True):
        assert quantized_values.dtype == np.int8
        error = np.abs(quantized_values * scales[name] - values)
        assert (error <= 0.51 * scales[name]).all()
    assert np.linalg.norm(found - logits) < 0.03 * np.linalg.norm(logits)
    # the second half reads what the first one wrote
    first = run(quantized, ids[:, :20], past)
    second = run(quantized, ids[:, 20:], first[1:])
    assert np.linalg.norm(second[0] - logits[:, 20:]) < 0.03 * np.linalg.norm(logits[:, 20:])


def test_attention_without_scales_stays() -> None:
    model = attention_model()
    step = QuantizeKvCache({PRESENT[0]: np.ones((1, KV_HEADS, 1, SIZE), np.float32)})
    run_passes(model, [], [step])
    assert not step.changed
    assert model.graph.inputs[2].dtype == ir.DataType.FLOAT


def test_a_model_without_the_operator_is_refused(tmp_path: Path) -> None:
    model = graph([node("Relu", ["x"], ["y"])], {})
    ir.save(model, tmp_path / "model.onnx")
    bundle = open_bundle(tmp_path / "model.onnx")
    with pytest.raises(QuantizeError, match=r"model\.onnx: no GroupQueryAttention"):
        kv_cache_scales(bundle, model, tmp_path / "model.onnx", CalibrationInput([1, 2]))
