"""WAV files and features, against transformers' own extractors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import bag_models as bag
import numpy as np
import pytest
import runtime_models as tiny
import transformers
from wav_files import RATE, write_wav

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.manifest import Manifest, Signature
from edgetie.bundle.names import FEATURES_MASK, SPEECH
from edgetie.errors import AudioError, BundleError
from edgetie.graph.tensors import TensorInfo
from edgetie.runtime.audio.features import FeatureExtractor, mel_filters, read_settings, read_wav


def audio(seconds: float) -> np.ndarray:
    """A tone with an echo of noise, float32."""
    count = max(1, int(seconds * RATE))
    tone = 0.3 * np.sin(np.arange(count) * 0.1)
    return (tone + 0.05 * np.random.default_rng(0).normal(size=count)).astype(np.float32)


def bundle_with(directory: Path, *inputs: TensorInfo, **settings: object) -> Bundle:
    """A bundle whose encoder has these inputs, with a ``preprocessor_config.json``."""
    manifest = Manifest({}, SPEECH, "fp32", Signature([], []), [], 0, Signature([*inputs], []))
    if settings:
        (directory / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return Bundle(directory, directory / "decoder_model.onnx", manifest)


@pytest.mark.parametrize("bins", [80, 128])
def test_spectrograms_are_those_of_transformers(bins: int) -> None:
    theirs = transformers.WhisperFeatureExtractor(bins)
    ours = FeatureExtractor(RATE, bins, limit=30 * RATE)
    assert np.allclose(mel_filters(bins, 400, RATE), theirs.mel_filters, atol=1e-9)
    for samples in (audio(7), audio(30), np.zeros(RATE, np.float32), audio(0.01)):
        expected = theirs(samples, sampling_rate=RATE, return_tensors="np").input_features
        features = ours(samples)
        assert (features.shape, features.dtype) == (expected.shape, np.float32)
        assert np.abs(features - expected).max() < 1e-4


def test_waveforms_are_those_of_transformers(tmp_path: Path) -> None:
    info = TensorInfo("input_values", "float32", ("batch", "samples"))
    plain = FeatureExtractor.from_bundle(bundle_with(tmp_path, info))
    np.testing.assert_array_equal(plain(audio(0.1)), audio(0.1)[None])
    theirs = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    ours = FeatureExtractor.from_bundle(bundle_with(tmp_path, info, do_normalize=True))
    expected = theirs(audio(0.1), sampling_rate=RATE, return_tensors="np").input_values
    np.testing.assert_allclose(ours(audio(0.1)), expected, atol=1e-5)


def test_settings_come_from_the_encoders_shape_or_the_file(tmp_path: Path) -> None:
    info = TensorInfo("input_features", "float32", ("batch", 16, 100))
    assert FeatureExtractor.from_bundle(bundle_with(tmp_path, info)) == FeatureExtractor(
        RATE, bins=16, limit=16000
    )
    bundle = bundle_with(tmp_path, info, sampling_rate=8000, hop_length=80, n_fft=256)
    assert FeatureExtractor.from_bundle(bundle) == FeatureExtractor(
        8000, bins=16, fft_size=256, hop=80, limit=8000
    )


def test_masks_end_where_the_audio_does(tmp_path: Path) -> None:
    mask = TensorInfo(FEATURES_MASK, "int64", ("batch", "frames"))
    info = TensorInfo("input_features", "float32", ("batch", 20, "frames"))
    settings = {"n_fft": 400, "hop_length": 160}
    limited = FeatureExtractor.from_bundle(
        bundle_with(tmp_path, info, mask, chunk_length=2, sampling_rate=RATE, **settings)
    )
    feeds = limited.feeds(audio(0.5))
    assert feeds["input_features"].shape == (1, 20, 200)
    assert feeds[FEATURES_MASK].sum() == 50
    windowed = FeatureExtractor.from_bundle(
        bundle_with(tmp_path, info, mask, n_window=25, min_length=3200, **settings)
    )
    feeds = windowed.feeds(audio(0.6))
    assert feeds["input_features"].shape == (1, 20, 100)
    assert feeds[FEATURES_MASK].sum() == 60
    assert windowed.feeds(audio(0.01))[FEATURES_MASK].sum() == 20
    assert set(FeatureExtractor(RATE).feeds(audio(0.1))) == {"input_features"}


def test_bundles_without_features_are_refused(tmp_path: Path) -> None:
    for write in (tiny.write_packed, bag.write_seq2seq):
        with pytest.raises(BundleError, match="not a speech model"):
            FeatureExtractor.from_bundle(open_bundle(write(tmp_path / write.__name__)))
    info = TensorInfo("input_features", "float32", ("batch", "frames", 20))
    with pytest.raises(BundleError, match="not a log-mel spectrogram"):
        FeatureExtractor.from_bundle(bundle_with(tmp_path, info))


def test_audio_that_the_model_does_not_accept_is_refused() -> None:
    extract = FeatureExtractor(RATE, 16, limit=RATE)
    with pytest.raises(AudioError, match=r"1\.5 s long, the model accepts 1 s"):
        extract(audio(1.5))
    for samples in (np.full(9, np.nan, np.float32), np.zeros(0), np.zeros((2, 9))):
        with pytest.raises(AudioError, match="finite"):
            extract(samples)


@pytest.mark.parametrize("text", ["{", "[]", '{"n_fft": 0}', '{"hop_length": "a"}'])
def test_settings_that_are_not_valid_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    assert read_settings(path) == {}
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"preprocessor_config\.json"):
        read_settings(path)


def test_samples_of_a_file(tmp_path: Path) -> None:
    samples = read_wav(write_wav(tmp_path / "audio.wav", audio(0.5)))
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, audio(0.5), atol=1e-4)


def test_a_file_written_to_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "audio.wav", audio(1))
    data, samples = bytearray(path.read_bytes()), read_wav(path)
    for length in (b"\xff" * 4, b"\x00\xf0\xff\x7f"):  # its final length is not known
        data[4:8] = data[40:44] = length
        path.write_bytes(data)
        np.testing.assert_array_equal(read_wav(path), samples)


def test_the_extensible_format_of_plain_samples(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "audio.wav", audio(1))
    data, samples = path.read_bytes(), read_wav(path)
    subformat = bytes.fromhex("0100000000001000800000aa00389b71")
    settings = b"\xfe\xff" + data[22:36] + b"\x16\x00\x10\x00\x04\x00\x00\x00" + subformat
    odd = b"LIST\x03\x00\x00\x00abc\x00"
    chunk = odd + b"fmt " + len(settings).to_bytes(4, "little") + settings
    rest = b"WAVE" + chunk + data[36:]
    path.write_bytes(b"RIFF" + len(rest).to_bytes(4, "little") + rest)
    np.testing.assert_array_equal(read_wav(path), samples)
    path.write_bytes(data[:20] + b"\x03\x00" + data[22:])  # floats
    with pytest.raises(AudioError, match=r"unknown format: 3.*ffmpeg"):
        read_wav(path)


def truncated(path: Path) -> Path:
    data = write_wav(path, audio(1)).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def damaged(path: Path) -> Path:
    """A file whose chunk of settings claims to be longer than the file."""
    data = bytearray(write_wav(path, audio(1)).read_bytes())
    data[17] = 0x80
    path.write_bytes(data)
    return path


def with_bytes(data: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: write_wav(path, audio(1), rate=44100), "has 44100 Hz.*ffmpeg"),
        (lambda path: write_wav(path, audio(1), channels=2), r"2 channel\(s\)"),
        (lambda path: write_wav(path, np.zeros(0)), "cut short or empty"),
        (truncated, "cut short"),
        (with_bytes(b"no sound at all"), "not a readable WAV file"),
        (with_bytes(b"RIFF"), "not a readable WAV file"),
        (damaged, "not a readable WAV file"),
        (with_bytes(b""), "not a readable WAV file"),
        (lambda path: path, "not a readable WAV file"),
    ],
)
def test_bad_files(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=message) as caught:
        read_wav(make(tmp_path / "audio.wav"))
    assert "\n" not in str(caught.value)
