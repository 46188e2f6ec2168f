"""``quantize``: int8 close to fp32, one table in the file, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize_models import KINDS, LEVELS, error, logits, plain

from edgetie.errors import BundleError, QuantizeError
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.harness.ties.inspect import inspect_model
from edgetie.quantize.quantizer import quantize_model
from edgetie.ties.groups import verify_ties


@pytest.mark.parametrize("kind", [*KINDS, "hand_written", "cacheless"])
@pytest.mark.slow
def test_close_to_fp32_with_one_table(float_bundle: Any, tmp_path: Path, kind: str) -> None:
    source = float_bundle(kind)
    report = quantize_model(source, tmp_path / "int8")
    reference = logits(source / "model.onnx")
    assert error(reference, logits(report.bundle.model_path)) < 0.05
    table = report.manifest.ties[0]
    assert {use.op_type for use in table.uses} == {"GatherBlockQuantized", "MatMulNBits"}
    assert table.dtype == "UINT8"
    verify_ties(ir.load(report.bundle.model_path), report.manifest.ties)
    graph = onnx.load(report.bundle.model_path, load_external_data=False).graph
    codes = [
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.UINT8 and models.VOCAB in tensor.dims
    ]
    assert codes.count(table.name) == 1


@pytest.mark.slow
def test_every_optimization_level_agrees(float_bundle: Any, tmp_path: Path) -> None:
    report = quantize_model(float_bundle("Llama"), tmp_path / "int8")
    first, *others = [logits(report.bundle.model_path, level) for level in LEVELS]
    for other in others:
        np.testing.assert_allclose(other, first, atol=2e-2 * np.abs(first).max())


@pytest.mark.slow
def test_untied_model(float_bundle: Any, tmp_path: Path) -> None:
    report = quantize_model(float_bundle("untied"), tmp_path / "int8")
    assert (
        error(logits(float_bundle("untied") / "model.onnx"), logits(report.bundle.model_path))
        < 0.03
    )
    assert report.manifest.ties == []
    assert report.float_weights == ()


def test_outliers_are_smoothed_and_rotated_away(tmp_path: Path) -> None:
    """A model with a few channels 30 times the others is rotated, and loses little."""
    path = plain(tmp_path, outliers=True)
    report = quantize_model(path, tmp_path / "int8")
    assert report.manifest.quantization["calibration"].endswith("random tokens")
    assert report.manifest.quantization["rotated"] > 0
    assert error(logits(path), logits(report.bundle.model_path)) < 0.02


def test_massive_activations_are_found_and_kept_precise(tmp_path: Path) -> None:
    """A few tokens with one value hundreds of times the others, as large models have them."""
    path = plain(tmp_path)
    model = onnx.load(path)
    boost = np.zeros((models.VOCAB, 1), np.float32)
    boost[::3] = 300
    one = np.eye(64, dtype=np.float32)[5]
    weights = np.array(
        numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "middle"))
    )
    weights[5] *= 1e-4  # they say little
    for tensor in list(model.graph.initializer):
        if tensor.name == "middle":
            model.graph.initializer.remove(tensor)
    new = {"boost": boost, "one": one, "middle": weights}
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in new.items())
    model.graph.node[1].input[0] = "boosted"
    for index, node in enumerate(
        [
            helper.make_node("Gather", ["boost", "input_ids"], ["b"]),
            helper.make_node("Mul", ["b", "one"], ["c"]),
            helper.make_node("Add", ["x", "c"], ["boosted"]),
        ]
    ):
        model.graph.node.insert(1 + index, node)
    onnx.save(model, path)
    report = quantize_model(path, tmp_path / "int8")
    assert report.manifest.quantization["massive"] == ["middle"]
    graph = onnx.load(report.bundle.model_path, load_external_data=False).graph
    middle = next(node for node in graph.node if node.name == "middle")
    maker = next(node for node in graph.node if middle.input[0] in node.output)
    assert (middle.op_type, maker.op_type) == ("MatMulNBits", "Concat")
    assert error(logits(path), logits(report.bundle.model_path)) < 0.03


@pytest.mark.parametrize("head", ["Gemm", "Transpose"])
@pytest.mark.parametrize("width", [64, 80, 70])
def test_plain_file(tmp_path: Path, head: str, width: int) -> None:
    path = plain(tmp_path, head=head, width=width)
    report = quantize_model(path, tmp_path / "int8")
    assert error(logits(path), logits(report.bundle.model_path)) < 0.03
    assert [group.name for group in report.manifest.ties] == ["table"]
    assert report.float_weights == ()


def test_nan_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="middle: NaN or infinity"):
        quantize_model(plain(tmp_path, bad=True), tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


def test_quantized_model_is_refused(tmp_path: Path) -> None:
    quantize_model(plain(tmp_path), tmp_path / "int8")
    with pytest.raises(QuantizeError, match="quantized already"):
        quantize_model(tmp_path / "int8", tmp_path / "again")


def test_an_operator_that_nobody_knows(tmp_path: Path) -> None:
    """The graph cannot be run here: weights are rounded all the same, and it is said."""
    path = plain(tmp_path)
    model = onnx.load(path)
    model.graph.node[3].op_type, model.graph.node[3].domain = "Secret", "elsewhere"
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    onnx.save(model, path)
    report = quantize_model(path, tmp_path / "int8")
    assert report.manifest.quantization["calibration"].startswith("nothing: ")
    assert {node.op_type for node in onnx.load(report.bundle.model_path).graph.node} >= {
        "Secret",
        "MatMulNBits",
    }
    with pytest.raises(QuantizeError, match="ranges of its activations are not known"):
        quantize_model(path, tmp_path / "static", scheme="int8-static")
    with pytest.raises(BundleError, match="cannot load it"):
        quantize_model(path, tmp_path / "limits", limits=Thresholds(max_kl=1.0))
    assert not (tmp_path / "static").exists()
    assert not (tmp_path / "limits").exists()


def test_a_table_of_one_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(1, 2048)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["logits"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 1])
    graph = helper.make_graph(nodes, "row", [ids], [out], [numpy_helper.from_array(table, "table")])
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    for scheme in ("int8", "int8-mapped", "int8-dynamic", "int4-all"):
        report = quantize_model(tmp_path / "m.onnx", tmp_path / scheme, scheme=scheme)
        session = onnxruntime.InferenceSession(str(report.bundle.model_path))
        (found,) = session.run(None, {"input_ids": np.zeros((1, 3), np.int64)})
        exact = float(np.square(table).sum())
        np.testing.assert_allclose(found, np.full((1, 3, 1), exact), rtol=0.05)


@pytest.mark.slow
def test_files_that_are_links_as_in_a_cache_of_downloads(float_bundle: Any, tmp_path: Path) -> None:
    source: Path = float_bundle("Llama")
    blobs, links = tmp_path / "blobs", tmp_path / "links"
    blobs.mkdir()
    links.mkdir()
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.copyfile(file, blobs / f"{number}")
        (links / file.name).symlink_to(blobs / f"{number}")
    linked = quantize_model(links, tmp_path / "linked").bundle
    plain = quantize_model(source, tmp_path / "plain").bundle
    assert linked.manifest.quantization["compensated"] > 0
    for name in ("model.onnx", "model.onnx.data"):
        assert (linked.directory / name).read_bytes() == (plain.directory / name).read_bytes()
    assert check_model(links, str(source), provider="cpu").max_abs_error == 0
    assert len(inspect_model(links).ties) == 1
    data = (links / "model.onnx.data").resolve()
    (links / "model.onnx.data").unlink()
    (links / "model.onnx.data").hardlink_to(data)
    with pytest.raises(BundleError, match=r"model\.onnx\.data: has several hard links, copy it"):
        quantize_model(links, tmp_path / "hard")


@pytest.mark.slow
def test_smaller_blocks_are_closer(float_bundle: Any, tmp_path: Path) -> None:
    reference = logits(float_bundle("Llama") / "model.onnx")
    errors, sizes = [], []
    for block in (64, 32, 16):
        report = quantize_model(float_bundle("Llama"), tmp_path / str(block), block_size=block)
        graph = onnx.load(report.bundle.model_path, load_external_data=False).graph
        found = {
            helper.get_node_attr_value(node, "block_size")
            for node in graph.node
            if node.op_type in ("MatMulNBits", "GatherBlockQuantized")
        }
        assert found == {block}
        assert len(report.manifest.ties) == 1
        errors.append(error(reference, logits(report.bundle.model_path)))
        sizes.append(report.bundle.file_bytes)
    assert errors[0] > errors[1] > errors[2]
    assert sizes[0] < sizes[1] < sizes[2]
    with pytest.raises(QuantizeError, match="block_size: int8-mapped has no blocks"):
        quantize_model(
            float_bundle("Llama"), tmp_path / "mapped", scheme="int8-mapped", block_size=32
        )
    with pytest.raises(QuantizeError, match="block_size=48: not one of 16, 32, 64"):
        quantize_model(float_bundle("Llama"), tmp_path / "odd", block_size=48)
