"""Graphs that a session gets from memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models as tiny

from edgetie.errors import BundleError
from edgetie.runtime.in_memory_graph import (
    EXTERNAL_DATA_FOLDER,
    read_graph,
    remove_last_token_node,
)


def test_weights_stay_in_their_file(tmp_path: Path) -> None:
    directory = tiny.write_packed(tmp_path)
    model, folder = read_graph(directory / "model.onnx")
    assert folder == tmp_path.resolve()
    assert model.ByteSize() < 20_000 < (tmp_path / "model.onnx.data").stat().st_size
    options = ort.SessionOptions()
    options.add_session_config_entry(EXTERNAL_DATA_FOLDER, str(folder))
    assert ort.InferenceSession(model.SerializeToString(), options).get_outputs()


def test_links_to_weights_are_followed(tmp_path: Path) -> None:
    tiny.write_packed(tmp_path / "real")
    link = tmp_path / "link"
    link.mkdir()
    (link / "model.onnx").symlink_to(tmp_path / "real" / "model.onnx")
    (link / "model.onnx.data").symlink_to(tmp_path / "real" / "model.onnx.data")
    assert read_graph(link / "model.onnx")[1] == (tmp_path / "real").resolve()


@pytest.mark.parametrize("target", ["absent", "model.onnx.data"])
def test_links_that_lead_nowhere_are_refused(tmp_path: Path, target: str) -> None:
    tiny.write_packed(tmp_path)
    (tmp_path / "model.onnx.data").unlink()
    (tmp_path / "model.onnx.data").symlink_to(target)
    with pytest.raises(BundleError, match=r"model.onnx.data: external data .* is missing"):
        read_graph(tmp_path / "model.onnx")


def test_small_tensors_are_read(tmp_path: Path) -> None:
    """ONNX Runtime needs the values of shapes, which are in the weights' file of some exporters."""
    tiny.write_plain(tmp_path)
    whole = onnx.load(tmp_path / "model.onnx")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in whole.graph.initializer}
    path = tmp_path / "external.onnx"
    onnx.save(whole, path, save_as_external_data=True, location="all.data", size_threshold=0)
    model, _ = read_graph(path)
    small = [t for t in model.graph.initializer if not t.external_data]
    assert 0 < len(small) < len(values)
    for tensor in small:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), values[tensor.name])


@pytest.mark.parametrize("last_before_head", [True, False])
def test_logits_of_all_tokens(tmp_path: Path, last_before_head: bool) -> None:
    path = tiny.write_packed(tmp_path, last_before_head=last_before_head) / "model.onnx"
    before = onnx.load(path, load_external_data=False)
    graph = remove_last_token_node(path)
    assert graph is not None
    assert len(graph[0].graph.node) == len(before.graph.node) - 1
    assert len(graph[0].graph.initializer) == len(before.graph.initializer)
    dims = graph[0].graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", "sequence", tiny.VOCAB]
    options = ort.SessionOptions()
    options.add_session_config_entry(EXTERNAL_DATA_FOLDER, str(graph[1]))
    session = ort.InferenceSession(graph[0].SerializeToString(), options)
    ids = [5, 77, 31]
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, 3), np.int64)}
    for info in session.get_inputs()[2:]:
        feeds[info.name] = np.zeros((1, tiny.HEADS, 0, tiny.HEAD), np.float32)
    logits = session.run(["logits"], feeds)[0][0]
    np.testing.assert_allclose(logits, tiny.naive_logits(ids), rtol=1e-3, atol=1e-3)


def test_a_graph_without_the_node(tmp_path: Path) -> None:
    assert remove_last_token_node(tiny.write_plain(tmp_path) / "model.onnx") is None


def test_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no protobuf")
    with pytest.raises(BundleError, match="not a readable ONNX model"):
        read_graph(path)


@pytest.mark.parametrize(("name", "count"), [("input_ids", 2), ("logits", 3)])
def test_values_without_their_axes_are_named(tmp_path: Path, name: str, count: int) -> None:
    path = tiny.write_packed(tmp_path) / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    (value,) = (v for v in (*model.graph.input, *model.graph.output) if v.name == name)
    value.type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    with pytest.raises(BundleError, match=f"model.onnx: {name} does not have {count} axes"):
        remove_last_token_node(path)
