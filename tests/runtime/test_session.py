"""Opening: what a session says about a model, its variants, and every way it can fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bag_models as bag
import numpy as np
import onnx
import onnxruntime
import pytest
import runtime_models as tiny
from own_provider import OWN_NAME, needs_own_provider, write_int8

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import BundleError, ProviderError, summarize
from edgetie.providers.registry import OWN, PROVIDERS, require_provider
from edgetie.runtime.session import (
    default_threads,
    onnxruntime_errors,
    open_session,
    write_optimized,
)


def _write_growing(directory: Path) -> Path:
    """A bare file, which does not tell that its cache may be in place."""
    return tiny.write_packed(directory) / "model.onnx"


def test_session_describes_the_model(tmp_path: Path) -> None:
    session = open_session(open_bundle(tiny.write_packed(tmp_path)), provider="cpu", threads=1)
    assert [value.name for value in session.inputs][:3] == [
        "input_ids", "attention_mask", "past_key_values.0.key",
    ]  # fmt: skip
    assert session.inputs[0].dtype == "int64"
    assert session.inputs[0].shape == ("batch", "sequence")
    assert session.outputs[0].name == "logits"
    assert [keys.sizes for keys in session.cache[::2]] == [(tiny.HEADS, 0, tiny.HEAD)] * tiny.LAYERS
    assert session.cache_dtype == "float32"
    assert (session.cache_in_place, session.logits, session.threads) == (True, "last", 1)
    assert set(session.nodes_per_provider) == {"CPUExecutionProvider"}
    assert session.nodes_per_provider["CPUExecutionProvider"] > 10
    assert session.load_seconds > 0
    assert isinstance(session.ort, onnxruntime.InferenceSession)


def test_bare_models(tmp_path: Path) -> None:
    plain = open_session(tiny.write_plain(tmp_path / "plain"))
    assert (plain.cache_in_place, plain.logits, len(plain.cache)) == (False, "all", 4)
    uncached = open_session(tiny.write_plain(tmp_path / "bare", cached=False))
    assert (uncached.cache, uncached.cache_dtype) == ([], "")


@pytest.mark.parametrize("last_before_head", [True, False])
def test_all_logits_of_a_model_that_keeps_the_last(tmp_path: Path, last_before_head: bool) -> None:
    directory = tiny.write_packed(tmp_path, last_before_head=last_before_head)
    session = open_session(directory, logits="all")
    assert (session.logits, session.left_aligned_logits) == ("all", True)
    ids = [5, 77, 31, 2]
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, 4), np.int64)}
    for tensor in session.cache:
        feeds[tensor.past] = np.zeros(tensor.shape(1), np.float32)
    logits = session.ort.run(["logits"], feeds)[0][0]
    np.testing.assert_allclose(logits, tiny.naive_logits(ids), rtol=1e-3, atol=1e-3)


def test_all_logits_are_refused_where_the_node_is_unknown(tmp_path: Path) -> None:
    directory = tiny.write_packed(tmp_path)
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        node.name = ""
    bare = directory / "nameless.onnx"
    bare.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="last token only"):
        open_session(bare, logits="all")


def test_verifying_several_tokens_is_asked_for(tmp_path: Path) -> None:
    directory = tiny.write_packed(tmp_path)
    assert not open_session(directory).speculates  # no product for edgetie's provider
    session = open_session(directory, speculate=True)
    assert (session.speculates, session.logits, session.left_aligned_logits) == (
        True,
        "last",
        False,
    )
    assert session.outputs[0].shape[::2] == ("batch", tiny.VOCAB)
    feeds = {"input_ids": np.array([[5, 77]]), "attention_mask": np.ones((1, 2), np.int64)}
    for tensor in session.cache:
        feeds[tensor.past] = np.zeros(tensor.shape(1), np.float32)
    logits = session.ort.run(["logits"], feeds)[0]  # of the last token, if not told otherwise
    np.testing.assert_allclose(logits[0], tiny.naive_logits([5, 77])[-1:], rtol=1e-3, atol=1e-3)


@needs_own_provider
def test_the_own_provider_speculates_by_itself(tmp_path: Path) -> None:
    directory = write_int8(tmp_path)
    assert open_session(directory).speculates
    assert not open_session(directory, speculate=False).speculates
    assert not open_session(directory, provider="cpu").speculates
    assert open_session(directory, provider="cpu", speculate=True).speculates
    assert open_session(directory, logits="all").left_aligned_logits


@pytest.mark.parametrize(
    "write",
    [tiny.write_plain, bag.write_seq2seq, bag.write_fixed, _write_growing],
)
def test_models_that_cannot_verify_are_refused(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path)
    assert not open_session(path).speculates
    with pytest.raises(BundleError, match=r"speculate=True: .* cannot verify several tokens"):
        open_session(path, speculate=True)


def test_optimized_model_is_written(tmp_path: Path) -> None:
    directory = tiny.write_packed(tmp_path / "bundle")
    written = tmp_path / "optimized.onnx"
    nodes = write_optimized(directory / "model.onnx", written, "cpu")
    model = onnx.load(written, load_external_data=False)
    assert len(model.graph.node) == sum(nodes.values())
    assert any(node.op_type == "GroupQueryAttention" for node in model.graph.node)
    assert (tmp_path / "optimized.onnx.data").stat().st_size > 0


def test_encoder_and_decoder(tmp_path: Path) -> None:
    session = open_session(bag.write_seq2seq(tmp_path))
    assert [info.name for info in session.inputs][:2] == ["input_ids", "encoder_attention_mask"]
    assert [tensor.past for tensor in session.cache] == ["past_key_values.0.decoder.key"]
    assert [tensor.present for tensor in session.cross] == ["present.0.encoder.key"]
    assert [value.name for value in session.encoder.get_inputs()] == ["input_ids", "attention_mask"]
    assert session.prefill is None
    both = sum(session.nodes_per_provider.values())
    decoder = onnx.load(tmp_path / "decoder_model.onnx")
    assert both < len(decoder.graph.node) + 10
    assert session.fallback_nodes == {}


def test_graphs_of_fixed_shapes(tmp_path: Path) -> None:
    session = open_session(bag.write_fixed(tmp_path), logits="all")
    assert session.encoder is None
    assert session.prefill.get_inputs()[0].shape == [1, bag.CHUNK]
    assert session.inputs[0].shape == (1, 1)
    assert (session.logits, session.left_aligned_logits) == ("last", False)


def test_weights_stay_in_the_file_without_prepacking(tmp_path: Path) -> None:
    session = open_session(tiny.write_packed(tmp_path), prepack=False)
    options = session.ort.get_session_options()
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert session.embedding_files is None


@pytest.mark.parametrize(
    ("weights_in_memory", "has_files"), [("prepacked", True), ("mixed", False), ("mapped", False)]
)
def test_files_of_embeddings(tmp_path: Path, weights_in_memory: str, has_files: bool) -> None:
    directory = tiny.write_packed(tmp_path)
    bundle = open_bundle(directory)
    bundle.manifest.weights_in_memory = weights_in_memory
    assert (open_session(bundle).embedding_files is not None) == has_files
    assert open_session(bundle, release=False).embedding_files is None
    options = open_session(bundle).ort.get_session_options()
    off = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert (options.graph_optimization_level == off) == (weights_in_memory == "mapped")


@needs_own_provider
def test_the_own_provider_reads_weights_of_blocks_in_the_file(tmp_path: Path) -> None:
    """Nothing of the file is released as if it were packed, and the folded graph is final."""
    bundle = open_bundle(write_int8(tmp_path))
    off = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert bundle.manifest.weights_in_memory == "prepacked"
    for provider in ("auto", "edgetie"):
        session = open_session(bundle, provider=provider)
        assert session.provider == "edgetie"
        assert session.nodes_per_provider[OWN_NAME] > 5
        assert session.embedding_files is None
        assert session.ort.get_session_options().graph_optimization_level == off
    session = open_session(bundle, provider="cpu")
    assert (session.provider, session.fallback_nodes) == ("cpu", {})
    assert session.embedding_files is not None
    assert session.ort.get_session_options().graph_optimization_level != off


@needs_own_provider
def test_a_model_without_nodes_for_the_own_provider(tmp_path: Path) -> None:
    session = open_session(tiny.write_plain(tmp_path), strict=True)
    assert (session.provider, session.fallback_nodes) == ("cpu", {})
    with pytest.raises(ProviderError, match="provider='edgetie': took none of the"):
        open_session(tmp_path, provider="edgetie")


def test_a_bundle_compiled_for_another_provider(tmp_path: Path) -> None:
    bundle = open_bundle(tiny.write_packed(tmp_path))
    bundle.manifest.compiled = "qnn"
    with pytest.raises(ProviderError, match="is compiled for qnn; pass provider='qnn'"):
        open_session(bundle)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads=0: must be 1 or more"),
        ({"logits": "first"}, "logits='first': unknown; default or all"),
    ],
)
def test_values_that_are_not_valid(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        open_session(tmp_path, **options)


def test_failures_of_onnxruntime_are_bundle_errors(tmp_path: Path) -> None:
    message = r"model\.onnx: ONNX Runtime failed: bad"
    with pytest.raises(BundleError, match=message), onnxruntime_errors(tmp_path / "model.onnx"):
        raise RuntimeError("bad\nworse")


def test_not_an_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no protobuf")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        open_session(path)


def test_truncated_data(tmp_path: Path) -> None:
    directory = tiny.write_plain(tmp_path)
    data = directory / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"model\.onnx\.data.*truncated"):
        open_session(directory)


def test_onnxruntime_errors_are_one_line(tmp_path: Path) -> None:
    directory = tiny.write_plain(tmp_path)
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="NoSuchOperator") as raised:
        open_session(directory)
    assert "\n" not in str(raised.value)
    assert "[ONNXRuntimeError]" not in str(raised.value)


def test_cache_of_another_shape(tmp_path: Path) -> None:
    directory = tiny.write_plain(tmp_path)
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    for output in model.graph.output:
        output.name = output.name.replace("present.", "new.")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace("present.", "new.") for name in names]
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"past_key_values\.0\.key.*present\.0\.key"):
        open_session(directory)


def test_unknown_provider() -> None:
    with pytest.raises(
        ProviderError, match="provider='gpu': unknown; known are auto, cpu, edgetie"
    ):
        require_provider("gpu")


def test_absent_provider_is_an_error_not_a_fallback(tmp_path: Path) -> None:
    available = onnxruntime.get_available_providers()
    absent = next(row for row in PROVIDERS.values() if row.ort_name not in [*available, ""])
    with pytest.raises(ProviderError, match=f"provider='{absent.name}': not in the installed"):
        open_session(tiny.write_plain(tmp_path), provider=absent.name)


def test_providers_are_known_to_onnxruntime() -> None:
    known = set(onnxruntime.get_all_providers())
    assert {row.ort_name for row in PROVIDERS.values() if row.name != OWN} - {""} <= known


def test_threads(tmp_path: Path) -> None:
    assert default_threads() >= 1
    directory = tiny.write_plain(tmp_path)
    assert open_session(directory).threads == default_threads()
    assert open_session(directory, threads=3).ort.get_session_options().intra_op_num_threads == 3


def test_one_line() -> None:
    error = RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Load model failed:\n  bad node : x")
    assert summarize(error) == "Load model failed: bad node : x"
    assert summarize(ValueError("plain")) == "plain"
