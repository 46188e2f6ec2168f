"""The ties, the manifest and the other files of a quantized bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize_models import error, plain
from runtime_models import byte_tokenizer

from edgetie.errors import QuantizeError
from edgetie.quantize.quantizer import quantize_model


def test_a_matrix_read_both_ways_stays_one(tmp_path: Path) -> None:
    """``x W`` and ``y Wᵀ``, as models that project into their embedding and back have it."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(128, 64)).astype(np.float32)
    table = rng.normal(size=(300, 128)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["small"]),
        helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["small", "turned"], ["logits"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 128])
    initializers = [numpy_helper.from_array(a, n) for n, a in (("w", matrix), ("table", table))]
    graph = helper.make_graph(nodes, "both", [ids], [out], initializers)
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    report = quantize_model(tmp_path / "m.onnx", tmp_path / "int8")
    assert [(group.name, group.dtype) for group in report.manifest.ties] == [("w", "UINT8")]
    assert report.float_weights == ()
    assert report.dequantized == {"w": "Transpose"}
    assert report.float_share == 0
    assert report.manifest.quantization["blocks"] == {"64": 2}
    ids = {"input_ids": np.array([[3, 1, 4]])}
    expected, actual = (
        onnxruntime.InferenceSession(str(path)).run(None, ids)[0]
        for path in (tmp_path / "m.onnx", report.bundle.model_path)
    )
    assert error(expected, actual) < 0.03
    with pytest.raises(QuantizeError, match="weight w: Transpose would read it dequantized") as no:
        quantize_model(tmp_path / "m.onnx", tmp_path / "strict", require_tied_int8=True)
    assert no.value.parameter == "require_tied_int8"
    assert not (tmp_path / "strict").exists()


def test_files_next_to_a_bare_file_are_copied(tmp_path: Path) -> None:
    path = plain(tmp_path)
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not part of the model", encoding="utf-8")
    result = quantize_model(path, tmp_path / "int8").bundle.directory
    names = {file.name for file in result.iterdir()}
    assert {"tokenizer.json", "config.json"} <= names
    assert "notes.txt" not in names
