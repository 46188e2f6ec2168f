"""Fixed shapes on a small decoder: shapes, shared weights, logits, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from runtime_models import VOCAB, write_chat_bundle, write_plain

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.manifest import bare_manifest, write_manifest
from edgetie.bundle.names import MODEL, PREFILL
from edgetie.errors import BundleError, EdgetieError
from edgetie.npu.fix_shapes import fix_shapes

CONTEXT, TOKENS = 16, 4


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A bundle whose attention consists of operators of the ONNX standard."""
    directory = tmp_path / "decoder"
    directory.mkdir()
    write_plain(directory)
    manifest = bare_manifest(directory / MODEL)
    write_manifest(
        directory, replace(manifest, signature=replace(manifest.signature, max_positions=32))
    )
    return directory


def run(path: Path, ids: np.ndarray, past: int, context: int) -> np.ndarray:
    """Logits of tokens after an empty cache of ``past`` entries."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    count = ids.shape[1]
    feeds = {"input_ids": ids, "position_ids": np.arange(count)[None]}
    mask = np.zeros((1, context), np.int64)
    mask[:, context - count :] = 1
    feeds["attention_mask"] = mask
    for value in session.get_inputs():
        if value.name.startswith("past"):
            _, heads, _, size = value.shape
            feeds[value.name] = np.zeros((1, heads, past, size), np.float32)
    return session.run(["logits"], feeds)[0]


def test_two_graphs_with_fixed_shapes_share_their_weights(decoder: Path, tmp_path: Path) -> None:
    bundle = fix_shapes(decoder, tmp_path / "fixed", prompt_tokens=TOKENS, context=CONTEXT)
    assert isinstance(bundle, Bundle)
    assert bundle.has_fixed_shapes
    assert bundle.manifest.signature.max_positions == CONTEXT
    assert [path.name for path in bundle.model_paths] == [PREFILL, MODEL]
    for path, tokens in zip(bundle.model_paths, (TOKENS, 1), strict=True):
        graph = onnx.load(path, load_external_data=False).graph
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
        assert shapes["input_ids"] == [1, tokens]
        assert shapes["attention_mask"] == [1, CONTEXT]
        assert {shape[2] for name, shape in shapes.items() if name[:4] == "past"} == {
            CONTEXT - tokens
        }
    data = [path for path in bundle.files if path.suffix == ".data"]
    assert [path.stat().st_size for path in data] == [
        path.stat().st_size for path in decoder.glob("*.data")
    ]


@pytest.mark.parametrize(("file", "tokens"), [(PREFILL, TOKENS), (MODEL, 1)])
def test_logits_are_those_of_dynamic_shapes(
    decoder: Path, tmp_path: Path, file: str, tokens: int
) -> None:
    bundle = fix_shapes(decoder, tmp_path / "fixed", prompt_tokens=TOKENS, context=CONTEXT)
    ids = np.random.default_rng(0).integers(0, VOCAB, (1, tokens))
    expected = run(decoder / MODEL, ids, 0, tokens)
    logits = run(bundle.directory / file, ids, CONTEXT - tokens, CONTEXT)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_one_graph_if_prompts_are_read_token_by_token(decoder: Path, tmp_path: Path) -> None:
    bundle = fix_shapes(decoder, tmp_path / "fixed", prompt_tokens=1, context=CONTEXT)
    assert [path.name for path in bundle.model_paths] == [MODEL]


@pytest.mark.parametrize(("tokens", "context"), [(16, 16), (0, 16), (4, 64)])
def test_sizes_that_do_not_fit(decoder: Path, tmp_path: Path, tokens: int, context: int) -> None:
    with pytest.raises(EdgetieError, match=r"does not fit: .* at least 1 and at most 32") as caught:
        fix_shapes(decoder, tmp_path / "fixed", prompt_tokens=tokens, context=context)
    assert caught.value.parameter == "prompt_tokens"
    assert not (tmp_path / "fixed").exists()


def test_what_is_refused(decoder: Path, tmp_path: Path) -> None:
    fixed = fix_shapes(decoder, tmp_path / "fixed", prompt_tokens=1, context=CONTEXT)
    chat = write_chat_bundle(tmp_path / "chat")
    for source, message in (
        (fixed, "its shapes are fixed already"),
        (chat, "not a decoder with a KV cache"),
        (decoder / MODEL, "not a bundle; export the model"),
    ):
        with pytest.raises(BundleError, match=message):
            fix_shapes(source, tmp_path / "out", prompt_tokens=1, context=CONTEXT)
    manifest = fixed.manifest
    adapted = replace(manifest, adapters={"pirate": {}})
    with pytest.raises(BundleError, match="has adapters, whose rank is not fixed; merge one"):
        fix_shapes(replace(fixed, manifest=adapted), tmp_path / "out", context=CONTEXT)
    in_place = replace(manifest, signature=replace(manifest.signature, cache_in_place=True))
    with pytest.raises(BundleError, match="export again for target mobile-npu"):
        fix_shapes(Bundle(fixed.directory, fixed.model_path, in_place), tmp_path / "out")


def test_the_file_of_weights_is_only_copied(decoder: Path, tmp_path: Path) -> None:
    """A weight in that file that has a value in the model too would be written by onnx."""
    model = onnx.load(decoder / MODEL)
    onnx.save(
        model, decoder / MODEL, save_as_external_data=True, location="all.data", size_threshold=0
    )
    model = onnx.load(decoder / MODEL, load_external_data=False)
    model.graph.initializer[-1].raw_data = b""
    (decoder / MODEL).write_bytes(model.SerializeToString())
    manifest = bare_manifest(decoder / MODEL)
    write_manifest(
        decoder, replace(manifest, signature=replace(manifest.signature, max_positions=32))
    )
    fix_shapes(decoder, tmp_path / "fixed", prompt_tokens=TOKENS, context=CONTEXT)
    assert (tmp_path / "fixed" / "all.data").read_bytes() == (decoder / "all.data").read_bytes()
