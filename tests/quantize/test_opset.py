"""Models of older opsets are converted, their weights left where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetie.errors import QuantizeError
from edgetie.graph.model_files import load_model
from edgetie.quantize.opset import raise_opset
from edgetie.quantize.quantizer import quantize_model

node = helper.make_node
ROWS, WIDTH = 320, 64
IDS = {"input_ids": np.array([[3, 7, 319, 0]])}


def write(directory: Path, opset: int, *, functions: bool = False, odd: str = "Identity") -> Path:
    """A tied table and operators whose attributes became inputs: ReduceMean, Split."""
    rng = np.random.default_rng(0)
    values = {
        "table": rng.normal(size=(ROWS, WIDTH)).astype(np.float32),
        "w": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8,
    }
    half = [node("Split", ["c"], ["a", "b"], axis=2), node("Concat", ["b", "a"], ["s"], axis=-1)]
    nodes = [
        node("Gather", ["table", "input_ids"], ["x"]),
        node("ReduceMean", ["x"], ["m"], axes=[-1]),
        node("Sub", ["x", "m"], ["c"]),
        *([node("Swap", ["c"], ["s"], domain="local")] if functions else half),
        node("MatMul", ["s", "w"], ["h"]),
        node(odd, ["h"], ["z"]),
        node("Gelu", ["z"], ["y"], domain="com.microsoft"),
        node("Transpose", ["table"], ["t"], perm=[1, 0]),
        node("MatMul", ["y", "t"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "old",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", ROWS])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    if functions:
        model.opset_import.append(helper.make_opsetid("local", 1))
        swap = helper.make_function("local", "Swap", ["c"], ["s"], half, imports[:1])
        model.functions.append(swap)
    path = directory / "old.onnx"
    onnx.save(model, path, save_as_external_data=True, location="old.data")
    return path


def logits(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], IDS)[0]


@pytest.mark.parametrize(("opset", "functions"), [(9, False), (12, False), (17, True)])
def test_the_same_logits_from_the_same_file(tmp_path: Path, opset: int, functions: bool) -> None:
    path = write(tmp_path, opset, functions=functions)
    model = load_model(path)
    converted = raise_opset(model, 21)
    assert converted.graph.opset_imports[""] == 21
    for name in ("table", "w"):
        tensor = converted.graph.initializers[name].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert Path(tensor.path) == tmp_path / "old.data"
    assert [value.name for value in converted.graph.inputs] == ["input_ids"]
    ir.save(converted, tmp_path / "new.onnx")
    np.testing.assert_allclose(logits(tmp_path / "new.onnx"), logits(path), atol=1e-5)


def test_models_that_are_new_enough_stay_themselves(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, 17))
    assert raise_opset(model, 17) is model


def test_what_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, 17, odd="NoSuchOperator"))
    with pytest.raises(QuantizeError, match=r"opset is 17 .* need 18, .*cannot be converted"):
        raise_opset(model, 18)


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static16", "int8-plain"])
def test_old_files_are_quantized_by_schemes_of_newer_operators(tmp_path: Path, scheme: str) -> None:
    path = write(tmp_path, 12)
    report = quantize_model(path, tmp_path / "out", scheme=scheme)
    model = onnx.load(report.bundle.model_path, load_external_data=False)
    tables = [t for t in model.graph.initializer if np.prod(t.dims) == ROWS * WIDTH]
    assert {t.data_type for t in tables} <= {TensorProto.INT8, TensorProto.UINT8}
    assert len({str(t.external_data) for t in tables}) == 1  # names of the same bytes
    expected, result = logits(path), logits(report.bundle.model_path)
    assert np.linalg.norm(result - expected) < 0.03 * np.linalg.norm(expected)
    assert "random tokens" in report.manifest.quantization["calibration"]
