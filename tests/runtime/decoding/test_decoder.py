"""The decoder gives naive logits for every kind of model, padding and kind of cache."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import pytest
import runtime_models as tiny

from edgetie.errors import BundleError, EdgetieError
from edgetie.export.exporter import export_model
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.session import Session, open_session

PROMPTS = [[3, 90, 14, 15, 92], [65], [35, 8, 9, 79, 32, 38, 46, 26]]

MODELS: dict[str, Callable[[Path], Session]] = {
    "packed": lambda path: open_session(tiny.write_packed(path)),
    "packed, last after the head": lambda path: open_session(
        tiny.write_packed(path, last_before_head=False)
    ),
    "packed, all logits": lambda path: open_session(tiny.write_packed(path), logits="all"),
    "packed, growing cache": lambda path: open_session(tiny.write_packed(path) / "model.onnx"),
    "plain": lambda path: open_session(tiny.write_plain(path)),
    "plain, vocabulary unknown": lambda path: open_session(
        tiny.write_plain(path, vocabulary="vocab")
    ),
    "no cache": lambda path: open_session(tiny.write_plain(path, cached=False)),
}


def padded(prompts: list[list[int]], side: str) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, prompts))
    ids, mask = np.zeros((2, len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        place = slice(0, len(prompt)) if side == "right" else slice(longest - len(prompt), None)
        ids[row, place], mask[row, place] = prompt, 1
    return ids, mask


def assert_close(got: np.ndarray, prompts: list[list[int]]) -> None:
    assert got.dtype == np.float32
    expected = np.stack([tiny.naive_logits(ids)[-1] for ids in prompts])
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", MODELS)
def test_batches_equal_naive(tmp_path: Path, kind: str, side: str) -> None:
    session = MODELS[kind](tmp_path)
    decoder = Decoder(session, len(PROMPTS), 20)
    for _ in range(2):
        sequences = [list(prompt) for prompt in PROMPTS]
        logits = decoder.prefill(*padded(PROMPTS, side))
        assert_close(logits, sequences)
        for _ in range(5):
            tokens = logits.argmax(axis=1)
            for sequence, token in zip(sequences, tokens, strict=True):
                sequence.append(int(token))
            logits = decoder.step(tokens)
            assert_close(logits, sequences)
        assert decoder.length == 8 + 5
        decoder.reset()


@pytest.mark.parametrize("kind", MODELS)
def test_a_prompt_in_parts_is_the_whole_prompt(tmp_path: Path, kind: str) -> None:
    decoder = Decoder(MODELS[kind](tmp_path), 1, 8)
    whole = PROMPTS[2]
    decoder.prefill(np.array([whole[:3]]))
    assert_close(decoder.prefill(np.array([whole[3:]])), [whole])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("count", [4, 8, 9, 12, 13])
def test_a_long_prompt_is_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, count: int
) -> None:
    session = MODELS[kind](tmp_path)
    prompt = np.random.default_rng(count).integers(0, tiny.VOCAB, count).tolist()
    monkeypatch.setattr("edgetie.runtime.decoding.decoder._CHUNK", 4)
    parts = Decoder(session, 1, count + 2)
    assert_close(parts.prefill(np.array([prompt])), [prompt])
    assert parts.length == count
    assert_close(parts.step(np.array([7])), [[*prompt, 7]])
    with pytest.raises(EdgetieError, match=f"{count + 4} tokens exceed max_length {count + 2}"):
        parts.prefill(np.array([[1, 2, 3]]))
    assert parts.length == count + 1
    assert_close(parts.step(np.array([9])), [[*prompt, 7, 9]])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_activations_of_a_long_prompt_take_little_memory(tmp_path: Path) -> None:
    """Of all tokens, each of three activations in the feed-forward layers would have 128 MB."""
    model = models.transformers_model(
        "Llama", num_hidden_layers=1, intermediate_size=4096, max_position_embeddings=8192
    )
    bundle = export_model(models.source_of(model), tmp_path / "fp32").bundle.directory
    program = (
        "import sys, numpy as np; from edgetie import Decoder, open_session\n"
        "from edgetie.runtime.memory import read_memory\n"
        "decoder = Decoder(open_session(sys.argv[1], provider='cpu'), 1, 8192)\n"
        "decoder.prefill(np.full((1, 8), 5)); decoder.reset(); before = read_memory().rss\n"
        "decoder.prefill(np.full((1, 8192), 5)); print(read_memory().peak - before)"
    )
    command = [sys.executable, "-c", program, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200 << 20


@pytest.mark.parametrize("kind", MODELS)
def test_a_prompt_of_one_token(tmp_path: Path, kind: str) -> None:
    decoder = Decoder(MODELS[kind](tmp_path), 1, 8)
    assert_close(decoder.prefill(np.array([[65]])), [[65]])
    assert_close(decoder.step(np.array([9])), [[65, 9]])
    assert_close(decoder.step(np.array([7])), [[65, 9, 7]])


def test_earlier_logits_are_not_overwritten(tmp_path: Path) -> None:
    decoder = Decoder(open_session(tiny.write_packed(tmp_path)), 1, 8)
    first = decoder.prefill(np.array([PROMPTS[0]]))
    copy = first.copy()
    decoder.step(np.array([4]))
    assert np.array_equal(first, copy)


def test_model_without_attention_mask_refuses_padding(tmp_path: Path) -> None:
    session = open_session(tiny.write_plain(tmp_path, cached=False, mask_input=False))
    decoder = Decoder(session, 1, 12)
    assert_close(decoder.prefill(np.array([PROMPTS[0]])), [PROMPTS[0]])
    assert_close(decoder.step(np.array([11])), [[*PROMPTS[0], 11]])
    with pytest.raises(EdgetieError, match="no attention_mask"):
        Decoder(session, 3, 12).prefill(*padded(PROMPTS, "left"))


@pytest.mark.parametrize("kind", ["packed", "plain", "no cache"])
def test_no_room(tmp_path: Path, kind: str) -> None:
    decoder = Decoder(MODELS[kind](tmp_path), 1, 6)
    decoder.prefill(np.array([PROMPTS[0]]))
    assert_close(decoder.step(np.array([1])), [[*PROMPTS[0], 1]])
    with pytest.raises(EdgetieError, match="7 tokens exceed max_length 6"):
        decoder.step(np.array([2]))
    assert decoder.length == 6


def test_longer_than_the_model_takes(tmp_path: Path) -> None:
    session = open_session(tiny.write_packed(tmp_path))
    with pytest.raises(EdgetieError, match=r"accepts 48 tokens, not 49"):
        Decoder(session, 1, 49)


def test_a_sequence_of_padding_only_is_refused(tmp_path: Path) -> None:
    decoder = Decoder(open_session(tiny.write_packed(tmp_path)), 2, 6)
    with pytest.raises(EdgetieError, match="sequence 1 has no token"):
        decoder.prefill(np.array([[1, 2], [0, 0]]), np.array([[1, 1], [0, 0]]))


def test_a_model_that_is_not_a_decoder(tmp_path: Path) -> None:
    import onnx

    directory = tiny.write_plain(tmp_path)
    model = onnx.load(directory / "model.onnx")
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "input_ids" else name for name in node.input]
    model.graph.input[0].name = "pixels"
    onnx.save(model, directory / "model.onnx")
    with pytest.raises(BundleError, match="input pixels; only decoders"):
        Decoder(open_session(directory / "model.onnx"), 1, 8)
