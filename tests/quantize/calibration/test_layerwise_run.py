"""A model run in segments gives the same activations as the whole model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize_models import plain

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.names import LAST_TOKEN_NODE
from edgetie.errors import QuantizeError
from edgetie.quantize.calibration import layerwise_run
from edgetie.quantize.calibration.layerwise_run import (
    CalibrationInput,
    is_bidirectional,
    run_layerwise,
)

TOKENS = np.random.default_rng(0).integers(3, 320, 600)


def whole(path: Path, names: list[str], ids: np.ndarray) -> list[np.ndarray]:
    """The same activations as outputs of the whole model."""
    model = onnx.load(path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(names, {"input_ids": ids}))


@pytest.mark.parametrize("segment_bytes", [1, 48 << 20])
def test_activations_in_order_of_the_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment_bytes: int
) -> None:
    """With segments of one weight each, and in one segment."""
    monkeypatch.setattr(layerwise_run, "_SEGMENT_BYTES", segment_bytes)
    path = plain(tmp_path)
    inputs = CalibrationInput(TOKENS.tolist())
    results = list(run_layerwise(open_bundle(path), path, ["x", "y", "h"], inputs))
    windows = [TOKENS[:256][None], TOKENS[256:512][None], TOKENS[512:][None]]
    for index, name in enumerate(("x", "y", "h")):
        of_name = [each for each in results if each.name == name]
        assert [each.is_last for each in of_name] == [False, False, True]
        for each, ids in zip(of_name, windows, strict=True):
            expected = whole(path, ["x", "y", "h"], ids)[index]
            np.testing.assert_allclose(each.array, expected, atol=1e-5)
            assert each.tokens.shape == (ids.size, 64)


def test_values_after_the_last_token_are_those_of_all_tokens(tmp_path: Path) -> None:
    path = plain(tmp_path, head="Transpose")
    model = onnx.load(path)
    select = helper.make_node("GatherND", ["y", "last"], ["z"], LAST_TOKEN_NODE, batch_dims=1)
    model.graph.node.insert(3, select)
    model.graph.node[4].input[0] = "z"
    model.graph.initializer.append(numpy_helper.from_array(np.array([[[7]]]), "last"))
    onnx.save(model, path)
    ids = TOKENS[:8]
    names = ["z", "h", "a value that only a rewritten graph has"]
    results = run_layerwise(open_bundle(path), path, names, CalibrationInput(ids.tolist()))
    shapes = {each.name: each.array.shape for each in results}
    assert shapes == {"z": (1, 8, 64), "h": (1, 8, 64)}


def test_prefix_and_suffix_surround_each_window(tmp_path: Path) -> None:
    path = plain(tmp_path)
    table = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    inputs = CalibrationInput(list(range(10, 20)), prefix=[1], suffix=[2])
    (x,) = run_layerwise(open_bundle(path), path, ["x"], inputs)
    np.testing.assert_array_equal(x.tokens, table[[1, *range(10, 20)]])  # a decoder has no suffix


def test_own_feeds_are_checked(tmp_path: Path) -> None:
    path = plain(tmp_path)
    bundle, ids = open_bundle(path), np.array([[4, 5]])
    (x,) = run_layerwise(bundle, path, ["x"], CalibrationInput(feeds=[{"input_ids": ids}]))
    assert x.array.shape == (1, 2, 64)
    for feeds, message in [
        ({"ids": ids}, "ids is not an input"),
        ({}, "input_ids is missing"),
    ]:
        with pytest.raises(QuantizeError, match=message) as caught:
            list(run_layerwise(bundle, path, ["x"], CalibrationInput(feeds=[feeds])))
        assert caught.value.parameter == "calibration"


def test_a_model_that_fails_is_named(tmp_path: Path) -> None:
    path = plain(tmp_path)
    feeds = {"input_ids": np.array([[10**6]])}
    with pytest.raises(QuantizeError, match=r"plain\.onnx: calibration cannot run it"):
        list(run_layerwise(open_bundle(path), path, ["x"], CalibrationInput(feeds=[feeds])))


def test_windows_are_as_long_as_a_bare_model_accepts(tmp_path: Path) -> None:
    """A table of 64 positions; 256 tokens are halved twice."""
    positions = np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32)
    table = np.random.default_rng(2).normal(size=(320, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["length"], start=1),
        helper.make_node("Slice", ["positions", "zero", "length"], ["p"]),
        helper.make_node("Gather", ["table", "input_ids"], ["e"]),
        helper.make_node("Add", ["e", "p"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "positions",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 8])],
        [
            numpy_helper.from_array(array, name)
            for name, array in {
                "positions": positions,
                "table": table,
                "zero": np.array([0]),
            }.items()
        ],
    )
    opsets = [helper.make_opsetid("", 21)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    inputs = CalibrationInput(TOKENS[:100].tolist())
    results = list(run_layerwise(open_bundle(path), path, ["e"], inputs))
    assert [each.array.shape[1] for each in results] == [64, 36]


@pytest.mark.parametrize(("axis", "expected"), [(1, True), (2, False)])
def test_is_bidirectional(tmp_path: Path, axis: int, expected: bool) -> None:
    """A softmax over tokens lets each of them depend on later ones, one over channels does not."""
    path = plain(tmp_path)
    model = onnx.load(path)
    model.graph.node.insert(1, helper.make_node("Softmax", ["x"], ["soft"], axis=axis))
    model.graph.node[2].input[0] = "soft"
    onnx.save(model, path)
    assert is_bidirectional(path) is expected


def test_a_model_that_cannot_run_is_not_bidirectional(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = plain(tmp_path)
    model = onnx.load(path)
    model.graph.node[1].op_type = "Secret"
    onnx.save(model, path)
    with caplog.at_level("DEBUG", "edgetie"):
        assert not is_bidirectional(path)
    assert "cannot be run" in caplog.text


def test_weights_behind_a_link_are_read(tmp_path: Path) -> None:
    """As in the hub's cache, where the model and its weights are links to files of other names."""
    cache, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    cache.mkdir()
    blobs.mkdir()
    path = plain(tmp_path)
    model = onnx.load(path)
    onnx.save(
        model, blobs / "m", save_as_external_data=True, location="model.data", size_threshold=0
    )
    (blobs / "model.data").rename(blobs / "w")
    (cache / "model.onnx").symlink_to("../blobs/m")
    (cache / "model.data").symlink_to("../blobs/w")
    inputs = CalibrationInput(TOKENS[:256].tolist())
    linked = cache / "model.onnx"
    (result,) = run_layerwise(open_bundle(linked), linked, ["h"], inputs)
    (expected,) = run_layerwise(open_bundle(path), path, ["h"], inputs)
    np.testing.assert_array_equal(result.array, expected.array)
