"""What is read of a source, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from quantize_models import plain
from table_forms import EINSUMS, MOVED, TABLE, Form, head, node, run, stored_tables

from edgetie.errors import QuantizeError
from edgetie.quantize.quantizer import quantize_model
from edgetie.quantize.source_models import read_source_models

FORMS = MOVED | EINSUMS


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


def with_copy(path: Path, *, output: bool = False) -> Path:
    """Look the table up again in a copy of it, which may be an output of the graph too."""
    model = onnx.load(path)
    table = np.array(numpy_helper.to_array(model.graph.initializer[0]))
    model.graph.initializer.append(numpy_helper.from_array(table, "copy"))
    model.graph.node.insert(1, helper.make_node("Gather", ["copy", "input_ids"], ["again"]))
    model.graph.node.insert(2, helper.make_node("Add", ["x", "again"], ["sum"]))
    model.graph.node[3].input[0] = "sum"
    if output:
        kind = onnx.TensorProto.FLOAT
        model.graph.output.append(helper.make_tensor_value_info("copy", kind, table.shape))
    onnx.save(model, path)
    return path


def test_a_tied_weight_that_is_stored_twice_is_merged(tmp_path: Path) -> None:
    source = read_source_models(with_copy(plain(tmp_path, head="Transpose")))
    (model,) = source.models.values()
    assert "copy" not in model.graph.initializers
    assert [len(group.uses) for group in source.ties["model.onnx"]] == [3]
    assert source.parameters == 320 * 64 + 64 * 64 + 2 * 64


def test_a_copy_that_is_an_output_is_refused(tmp_path: Path) -> None:
    path = with_copy(plain(tmp_path, head="Transpose"), output=True)
    with pytest.raises(QuantizeError, match=r"table is stored again as copy, which is an .*output"):
        read_source_models(path)


@pytest.mark.parametrize("dtype", [np.float16, ir.DataType.BFLOAT16.numpy()])
def test_a_rounded_copy_is_refused_or_merged(tmp_path: Path, dtype: type) -> None:
    form = Form(
        [
            node("Cast", "half", "wide", to=onnx.TensorProto.FLOAT),
            node("MatMul", "h wide", "logits"),
        ],
        {"half": np.ascontiguousarray(TABLE.T).astype(dtype)},
    )
    path = form.save(tmp_path / "plain.onnx")
    message = rf"half is table transposed rounded to {np.dtype(dtype).name} but for 0\.\d\d%"
    with pytest.raises(QuantizeError, match=message) as refused:
        read_source_models(path)
    source = read_source_models(path, max_distance=refused.value.advice["max_distance"])
    assert source.merged_near == ("half",)
    assert source.tied_names == ["table"]
    report = quantize_model(path, tmp_path / "int8", max_distance=0.01)
    assert stored_tables(report.bundle.model_path) == ["UINT8"]
    expected, actual = run(path), run(report.bundle.model_path)
    assert np.linalg.norm(actual - expected) < 0.03 * np.linalg.norm(expected)


def test_a_copy_of_equal_values_in_another_type_is_merged(tmp_path: Path) -> None:
    table = TABLE.astype(np.float16)
    nodes = [node("Cast", "half", "wide", to=onnx.TensorProto.FLOAT), *head("wide")]
    form = Form(nodes, {"half": table}, table=table.astype(np.float32))
    assert read_source_models(form.save(tmp_path / "plain.onnx")).tied_names == ["table"]


def test_a_head_that_was_trained_apart_stays_and_is_named(tmp_path: Path) -> None:
    other = TABLE * np.random.default_rng(0).normal(1, 0.05, TABLE.shape).astype(np.float32)
    path = Form(head("other"), {"other": other}).save(tmp_path / "plain.onnx")
    source = read_source_models(path)
    assert [(copy.name, copy.rounding) for copy in source.near] == [("other", None)]
    assert source.merged_near == ()
    assert source.tied_names == []


def test_a_copy_inside_a_function_is_merged(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ascontiguousarray(TABLE.T), "w")
    body = [node("Constant", "", "w", value=weight), node("MatMul", "a w", "b")]
    path = Form([helper.make_node("Head", ["h"], ["logits"], domain="local")]).save(
        tmp_path / "plain.onnx"
    )
    model = onnx.load(path)
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "Head", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    onnx.save(model, path)
    report = quantize_model(path, tmp_path / "int8")
    assert stored_tables(report.bundle.model_path) == ["UINT8"]
    expected, actual = run(path), run(report.bundle.model_path)
    assert np.linalg.norm(actual - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_gathers_and_products_read_the_table_itself(tmp_path: Path, form: Form) -> None:
    """In float32, logits are the same."""
    path = form.save(tmp_path / "plain.onnx")
    (model,) = read_source_models(path).models.values()
    ir.save(model, tmp_path / "normalized.onnx")
    expected = run(path)
    difference = np.linalg.norm(run(tmp_path / "normalized.onnx") - expected)
    assert difference < 1e-3 * np.linalg.norm(expected)  # one computes in float16
    table = model.graph.initializers["table"]
    users = {user.op_type for user, _ in table.uses()}
    assert users <= {"Gather", "MatMul", "Transpose", "Gemm", "FusedMatMul"}
