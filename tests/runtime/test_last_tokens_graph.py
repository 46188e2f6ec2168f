"""Graphs edited in memory to return the logits of several tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models as tiny

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.names import LAST_TOKENS
from edgetie.runtime.in_memory_graph import EXTERNAL_DATA_FOLDER
from edgetie.runtime.last_tokens_graph import select_last_tokens

IDS = [5, 77, 31, 9, 200]


def logits_of(directory: Path, count: int | None) -> np.ndarray:
    """Logits of the last ``count`` of ``IDS``, ``None`` to leave the input out."""
    edited = select_last_tokens(open_bundle(directory))
    assert edited is not None
    options = ort.SessionOptions()
    options.add_session_config_entry(EXTERNAL_DATA_FOLDER, str(edited[1]))
    session = ort.InferenceSession(edited[0], options)
    feeds = {"input_ids": np.array([IDS]), "attention_mask": np.ones((1, len(IDS)), np.int64)}
    for info in session.get_inputs()[2:]:
        feeds[info.name] = np.zeros((1, tiny.HEADS, 0, tiny.HEAD), np.float32)
    if count is not None:
        feeds[LAST_TOKENS] = np.arange(1 - count, 1)[:, None]
    logits: np.ndarray = session.run(["logits"], feeds)[0]
    return logits


@pytest.mark.parametrize("last_before_head", [True, False])
@pytest.mark.parametrize("count", [None, 1, 3, len(IDS)])
def test_as_many_logits_as_are_asked_for(
    tmp_path: Path, last_before_head: bool, count: int | None
) -> None:
    directory = tiny.write_packed(tmp_path, last_before_head=last_before_head)
    expected = tiny.naive_logits(IDS)[-(count or 1) :]
    np.testing.assert_allclose(logits_of(directory, count)[0], expected, rtol=1e-3, atol=1e-3)


def test_the_rest_of_the_model_stays(tmp_path: Path) -> None:
    bundle = open_bundle(tiny.write_packed(tmp_path))
    edited = select_last_tokens(bundle)
    assert edited is not None
    before = onnx.load(bundle.model_path, load_external_data=False)
    after = onnx.ModelProto.FromString(edited[0])
    *initializers, default = after.graph.initializer
    assert initializers == list(before.graph.initializer)
    assert onnx.numpy_helper.to_array(default).tolist() == [[0]]
    assert [*after.graph.input][:-1] == list(before.graph.input)
    assert after.graph.input[-1].name == default.name == LAST_TOKENS
    assert len(after.graph.node) == len(before.graph.node) + 1
    assert [*after.graph.output][1:] == list(before.graph.output)[1:]
    assert after.opset_import == before.opset_import
    dims = after.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", "last_tokens", tiny.VOCAB]


def test_links_to_weights_are_followed(tmp_path: Path) -> None:
    tiny.write_packed(tmp_path / "link")
    (tmp_path / "blobs").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / "link" / name).rename(tmp_path / "blobs" / f"hash-{len(name)}")
        (tmp_path / "link" / name).symlink_to(tmp_path / "blobs" / f"hash-{len(name)}")
    expected = tiny.naive_logits(IDS)[-2:]
    got = logits_of(tmp_path / "link" / "model.onnx", 2)
    np.testing.assert_allclose(got[0], expected, rtol=1e-3, atol=1e-3)


def test_other_graphs_are_left_alone(tmp_path: Path) -> None:
    assert select_last_tokens(open_bundle(tiny.write_plain(tmp_path / "plain"))) is None
    bundle = open_bundle(tiny.write_packed(tmp_path / "cut"))
    bundle.model_path.write_bytes(bundle.model_path.read_bytes()[:-40])
    assert select_last_tokens(bundle) is None
