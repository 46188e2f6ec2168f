"""Decoding with an encoder, against numpy."""

from __future__ import annotations

from pathlib import Path

import bag_models as bag
import numpy as np
import pytest
import runtime_models as tiny

from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.decoding.seq2seq_decoder import Seq2SeqDecoder
from edgetie.runtime.session import open_session


def expect(logits: np.ndarray, sequences: list[list[int]]) -> None:
    expected = np.stack([bag.logits(bag.TABLE[ids]) for ids in sequences])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_batches_are_those_of_numpy(tmp_path: Path) -> None:
    decoder = Seq2SeqDecoder(open_session(bag.write_seq2seq(tmp_path, (1, 4))), 2, 9)
    prompts = np.array([[7, 3, 11], [20, 0, 0]])
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    expect(decoder.prefill(prompts, mask), [[7, 3, 11, 1, 4], [20, 1, 4]])
    expect(decoder.step(np.array([9, 8])), [[7, 3, 11, 1, 4, 9], [20, 1, 4, 8]])
    assert decoder.length == 3
    decoder.start = [2]
    expect(decoder.restart(), [[7, 3, 11, 2], [20, 2]])
    decoder.reset()
    expect(decoder.prefill(prompts), [[7, 3, 11, 2], [20, 0, 0, 2]])


def test_features_are_encoded(tmp_path: Path) -> None:
    decoder = Seq2SeqDecoder(open_session(bag.write_speech(tmp_path)), 1, 9)
    samples = np.array([[0.25, 0.5, 0.75]])
    embeddings = np.stack([0.5 * bag.TABLE[5], *bag.TABLE[[1, 4]]])
    np.testing.assert_allclose(decoder.prefill(samples)[0], bag.logits(embeddings), rtol=1e-4)
    with pytest.raises(EdgetieError, match="reads input_values of another kind"):
        decoder.prefill(np.array([[1, 2]]))


def test_inputs_by_name(tmp_path: Path) -> None:
    decoder = Seq2SeqDecoder(open_session(bag.write_seq2seq(tmp_path, (1, 4))), 1, 9)
    inputs = {"input_ids": np.array([[7, 3]]), "attention_mask": np.array([[1, 0]])}
    expect(decoder.encode(inputs), [[7, 1, 4]])
    with pytest.raises(EdgetieError, match="its encoder reads attention_mask as well; add it"):
        decoder.encode({"input_ids": inputs["input_ids"]})


def test_the_end_of_the_room(tmp_path: Path) -> None:
    decoder = Seq2SeqDecoder(open_session(bag.write_seq2seq(tmp_path)), 1, 2)
    decoder.prefill(np.array([[7]]))
    decoder.step(np.array([3]))
    with pytest.raises(EdgetieError, match="max_length 2"):
        decoder.step(np.array([3]))


def test_models_without_a_start_are_refused(tmp_path: Path) -> None:
    for directory in (bag.write_seq2seq(tmp_path / "a", ()), tiny.write_packed(tmp_path / "b")):
        with pytest.raises(BundleError, match="which token its decoder starts with"):
            Seq2SeqDecoder(open_session(directory), 1, 2)
