"""Audio embeddings and their places in prompts, against numpy."""

from __future__ import annotations

from pathlib import Path

import bag_models as bag
import numpy as np
import onnxruntime as ort
import pytest
import runtime_models as tiny

from edgetie.errors import BundleError
from edgetie.runtime.audio.embeddings import embed_audio, prepend_audio, random_features
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.session import open_session


def test_embeddings_take_the_places_of_audio_tokens(tmp_path: Path) -> None:
    session = open_session(bag.write_audio_lm(tmp_path))
    features = np.random.default_rng(0).normal(size=(1, bag.WIDTH, 3)).astype(np.float32)
    embeddings = embed_audio(session, {"input_features": features})
    np.testing.assert_array_equal(embeddings, features[0].T)
    ids = [4, *[bag.AUDIO_TOKEN] * 3, 7]
    decoder = Decoder(session, 1, 8)
    expected = [bag.TABLE[[4]], embeddings, bag.TABLE[[7]]]
    for _ in range(2):
        logits = decoder.prefill(np.array([ids]), audio_embeddings=embeddings)
        np.testing.assert_allclose(logits[0], bag.logits(*expected), rtol=1e-4, atol=1e-4)
        logits = decoder.step(np.array([9]))
        following = bag.logits(*expected, bag.TABLE[[9]])
        np.testing.assert_allclose(logits[0], following, rtol=1e-4, atol=1e-4)
        decoder.reset()
    plain = decoder.prefill(np.array([[4, 7]]))
    np.testing.assert_allclose(plain[0], bag.logits(bag.TABLE[[4, 7]]), rtol=1e-4, atol=1e-4)


def test_a_model_without_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no encoder"):
        embed_audio(open_session(tiny.write_packed(tmp_path)), {})


def test_features_that_the_encoder_refuses(tmp_path: Path) -> None:
    session = open_session(bag.write_audio_lm(tmp_path))
    with pytest.raises(BundleError, match="ONNX Runtime failed"):
        embed_audio(session, {"input_features": np.zeros((1, 3, 3), np.float32)})


def test_audio_before_a_prompt() -> None:
    embeddings = np.ones((2, 4), np.float32)
    ids, same = prepend_audio(np.array([[5, 6]]), embeddings, 5, 9)
    assert ids.tolist() == [[5, 5, 0, 6]]
    assert same is embeddings
    added = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    ids, repeated = prepend_audio(np.array([[5, 6]]), added, None, 4)
    assert ids.tolist() == [[5, 6]]
    assert repeated.tolist() == [[[0, 1], [2, 3], [4, 5], [0, 1]]]


def test_random_features_have_a_length_that_the_encoder_accepts(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    bag.write_graph(
        path,
        """encode (float[batch, 4, frames] input_features, int64[batch, frames] mask)
          => (float[batch, 4, 2, 100] out) {
          shape = Constant <value_ints: ints = [0, 0, 2, 100]> ()
          weights = CastLike (mask, input_features)
          one = Constant <value_ints: ints = [1]> ()
          by_bin = Unsqueeze (weights, one)
          masked = Mul (input_features, by_bin)
          out = Reshape (masked, shape)
        }""",
        table=False,
    )
    feeds = random_features(ort.InferenceSession(path), np.random.default_rng(0))
    assert feeds["input_features"].shape == (1, 4, 200)
    assert feeds["mask"].tolist() == [[1] * 200]
    bag.write_graph(
        path,
        """encode (float[batch, samples] input_values) => (float[batch, 7] out) {
          shape = Constant <value_ints: ints = [0, 7]> ()
          out = Reshape (input_values, shape)
        }""",
        table=False,
    )
    with pytest.raises(BundleError, match="no known length of input_values"):
        random_features(ort.InferenceSession(path), np.random.default_rng(0))
