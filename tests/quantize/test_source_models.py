"""What is read of a source, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from quantize_models import plain

from edgetie.errors import QuantizeError
from edgetie.quantize.source_models import read_source_models


def test_a_bare_file(tmp_path: Path) -> None:
    path = plain(tmp_path)
    source = read_source_models(path)
    assert list(source.models) == ["model.onnx"]
    assert source.tied_names == ["table"]
    assert [group.name for group in source.ties["model.onnx"]] == ["table"]
    assert source.shared == frozenset()
    assert source.file_bytes == path.stat().st_size
    tensors = onnx.load(path).graph.initializer
    floats = [tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT]
    assert source.parameters == sum(numpy_helper.to_array(tensor).size for tensor in floats)


def test_its_manifest(tmp_path: Path) -> None:
    source = read_source_models(plain(tmp_path))
    manifest = source.make_manifest()
    assert (manifest.task, manifest.source["name"]) == ("causal-lm", "plain.onnx")
    assert manifest.signature.vocab_size == 320
    assert manifest.unique_parameters == source.parameters
    assert source.bundle.manifest.source == {}  # a copy was changed


def test_shapes_that_an_exporter_left_out_are_added(tmp_path: Path) -> None:
    (model,) = read_source_models(plain(tmp_path, head="Transpose")).models.values()
    shapes = [node.outputs[0].shape for node in model.graph if node.op_type == "MatMul"]
    assert all(shape is not None and len(shape) == 3 for shape in shapes)


def test_quantized_models_are_refused(tmp_path: Path) -> None:
    path = plain(tmp_path)
    model = onnx.load(path)
    model.graph.node[1].op_type = "MatMulInteger"
    onnx.save(model, path)
    with pytest.raises(QuantizeError, match=r"quantized already \(MatMulInteger middle\)"):
        read_source_models(path)


def test_a_tied_weight_that_is_stored_twice_is_refused(tmp_path: Path) -> None:
    path = plain(tmp_path, head="Transpose")
    model = onnx.load(path)
    table = np.array(numpy_helper.to_array(model.graph.initializer[0]))
    model.graph.initializer.append(numpy_helper.from_array(table, "copy"))
    model.graph.node.insert(1, helper.make_node("Gather", ["copy", "input_ids"], ["again"]))
    model.graph.node.insert(2, helper.make_node("Add", ["x", "again"], ["sum"]))
    model.graph.node[3].input[0] = "sum"
    onnx.save(model, path)
    with pytest.raises(QuantizeError, match="stored again as"):
        read_source_models(path)
