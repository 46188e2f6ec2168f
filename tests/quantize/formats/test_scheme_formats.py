"""Every scheme on a small plain file, and the formats that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize_models import error, logits, plain

from edgetie.errors import EdgetieError, QuantizeError
from edgetie.quantize.formats.scheme_formats import oldest_opset, weight_formats
from edgetie.quantize.quantizer import quantize_model
from edgetie.targets import QUANTIZE_SCHEMES, SCHEMES, TARGETS, find_scheme

IDS = np.random.default_rng(4).integers(3, models.VOCAB, (1, 24))
TOLERANCE = {"int8-static": 0.08, "int4": 0.3, "int4-all": 0.4}
INT_SCHEMES = [name for name, row in QUANTIZE_SCHEMES.items() if not row.float16]


@pytest.mark.parametrize("scheme", INT_SCHEMES)
@pytest.mark.parametrize("width", [64, 70])
def test_a_plain_file_of_any_width(tmp_path: Path, scheme: str, width: int) -> None:
    path = plain(tmp_path, width=width)
    report = quantize_model(path, tmp_path / "out", scheme=scheme)
    bound = TOLERANCE.get(scheme, 0.03)
    assert error(logits(path), logits(report.bundle.model_path)) < bound
    assert [group.name for group in report.manifest.ties] == ["table"]


@pytest.mark.parametrize("scheme", INT_SCHEMES)
def test_a_weight_with_nan_is_named(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(QuantizeError, match="middle: NaN or infinity"):
        quantize_model(plain(tmp_path, bad=True), tmp_path / "out", scheme=scheme)
    assert not (tmp_path / "out").exists()


def test_every_target_has_a_scheme_and_every_scheme_formats() -> None:
    assert {target.scheme for target in TARGETS.values()} <= SCHEMES.keys()
    assert [name for name, row in SCHEMES.items() if weight_formats(row) is None] == ["fp16"]
    assert find_scheme("web").name == "int8-plain"
    assert find_scheme("web", scheme="int4").name == "int4"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"target": "moon"}, "target='moon': unknown; one of cpu"),
        ({"scheme": "int3"}, "scheme='int3': unknown; one of int8"),
        ({"calibrator": "none"}, "calibrator='none': not one of minmax"),
    ],
)
def test_unknown_choices_are_refused(tmp_path: Path, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgetieError, match=message):
        quantize_model(plain(tmp_path), tmp_path / "out", **choice)


def test_a_weight_too_large_for_float16_is_named(tmp_path: Path) -> None:
    path = plain(tmp_path)
    model = onnx.load(path)
    middle = next(t for t in model.graph.initializer if t.name == "middle")
    middle.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(middle) * 1e6, "middle"))
    onnx.save(model, path)
    with pytest.raises(QuantizeError, match="middle: a value is too large"):
        quantize_model(path, tmp_path / "out", scheme="fp16")
    assert not (tmp_path / "out").exists()


def test_an_int8_cache_needs_group_query_attention(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="no GroupQueryAttention"):
        quantize_model(plain(tmp_path), tmp_path / "out", int8_kv_cache=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("exact", ["0", "1"])
@pytest.mark.parametrize("shape", [(5, 96), (2, 3, 96), (2, 2, 1, 96)])
def test_large_weights_are_multiplied_in_place_at_any_rank(
    tmp_path: Path, shape: tuple[int, ...], exact: str
) -> None:
    """A matrix so large that both parts of activations have a product of their own."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(96, 30_000)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape[:-1], 30_000])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    report = quantize_model(tmp_path / "m.onnx", tmp_path / "out", scheme="int8-mapped")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", exact)
    session = onnxruntime.InferenceSession(report.bundle.model_path, options)
    x = rng.normal(size=shape).astype(np.float32)
    x[0] = 0
    (y,) = session.run(None, {"x": x})
    assert y.shape == (*shape[:-1], 30_000)
    assert np.linalg.norm(y - x @ weight) < 0.01 * np.linalg.norm(x @ weight)
    assert not y[0].any()


def test_the_oldest_opset_is_that_of_the_newest_operator() -> None:
    assert oldest_opset(SCHEMES["int8-dynamic"]) == 18
    assert oldest_opset(SCHEMES["int8-static16"]) == 21
    assert oldest_opset(SCHEMES["fp16"]) == 1
