"""Read WAV files and compute what an encoder reads: waveforms or log-mel spectrograms."""

from __future__ import annotations

import io
import os
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.model_config import read_json
from edgetie.bundle.names import FEATURES_MASK, PREPROCESSOR
from edgetie.errors import AudioError, BundleError

_RATE, _HOP, _FFT_SIZE = 16000, 160, 400  # if a bundle has no settings
_UNKNOWN_SIZE = 0x7FFFF000  # bytes: programs that write to a pipe put this or more in the header
_EXTENSIBLE_FORMAT = b"\xfe\xff"
_PCM_SUBFORMAT = bytes.fromhex("0100000000001000800000aa00389b71")
_DYNAMIC_RANGE = 8.0  # decades below the loudest value; quieter values are raised to it


@dataclass(frozen=True)
class FeatureExtractor:
    """Turns a waveform into features, as transformers does, with numpy alone.

    Attributes:
        rate: samples per second.
        bins: mel bins of a spectrogram; 0 leaves the waveform as it is.
        fft_size: samples of one Fourier transform.
        hop: samples from one frame to the next.
        limit: most samples of an audio; shorter ones are padded with zeros. 0 for no limit.
        normalize: scale the waveform to mean 0 and variance 1.
        name: of the encoder's input.
        masked: whether the encoder reads a mask of padded frames.
        multiple: frames are padded to a multiple of it if there is no limit.
        shortest: fewest samples; shorter audio is padded with zeros.
    """

    rate: int
    bins: int = 0
    fft_size: int = _FFT_SIZE
    hop: int = _HOP
    limit: int = 0
    normalize: bool = False
    name: str = "input_features"
    masked: bool = False
    multiple: int = 1
    shortest: int = 1

    @staticmethod
    def from_bundle(bundle: Bundle) -> FeatureExtractor:
        """Read ``preprocessor_config.json``; without one, use the shape of the encoder's input.

        Raises:
            BundleError: if the model reads no audio, or its features cannot be computed here.
        """
        encoder = bundle.manifest.encoder
        inputs = {info.name: info.shape for info in encoder.inputs} if encoder else {}
        name = next(iter(inputs), "")
        if name not in ("input_features", "input_values", "inputs_embeds"):
            raise BundleError(f"{bundle.directory}: is not a speech model; give it text")
        settings = read_settings(bundle.directory / PREPROCESSOR)
        rate = settings.get("sampling_rate", _RATE)
        if name == "input_values":
            return FeatureExtractor(rate, normalize=bool(settings.get("do_normalize")), name=name)
        hop = settings.get("hop_length", _HOP)
        sizes = inputs[name][1:]
        fixed = [size for size in sizes if isinstance(size, int)]
        if FEATURES_MASK in inputs and len(sizes) == 2 and "n_fft" in settings:
            return FeatureExtractor(rate, **_masked_spectrogram(settings, hop, *sizes))
        if (settings and "n_fft" not in settings) or len(fixed) < len(sizes):
            raise BundleError(
                f"{bundle.directory}: its features are not a log-mel spectrogram of fixed length; "
                "compute them yourself and run it from Python (Seq2SeqDecoder.prefill)"
            )
        bins, frames = fixed
        return FeatureExtractor(rate, bins, settings.get("n_fft", _FFT_SIZE), hop, frames * hop)

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute features ``(1, bins, frames)`` of samples ``(count,)`` from -1 to 1, float32; or
        the waveform ``(1, count)`` if the encoder reads that.

        Raises:
            AudioError: if there are none, or more than the model accepts.
        """
        if samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
            raise AudioError("audio must be samples (count,), one or more, all of them finite")
        if self.limit and samples.size > self.limit:
            raise AudioError(
                f"the audio is {samples.size / self.rate:.1f} s long, the model accepts "
                f"{self.limit / self.rate:g} s; cut it into shorter parts"
            )
        if self.bins:
            return self._spectrogram(samples)[None]
        if self.normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return samples.astype(np.float32)[None]

    def feeds(self, samples: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Compute the encoder's inputs by name, its mask included, from samples ``(count,)``."""
        features = self(samples)
        if not self.masked:
            return {self.name: features}
        frames = features.shape[-1]
        count = max(samples.size, self.shortest)
        valid = -(-count // self.hop) if self.limit else count // self.hop
        mask = (np.arange(frames) < valid).astype(np.int64)
        return {self.name: features, FEATURES_MASK: mask[None]}

    def _spectrogram(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logarithms of the energy in each bin, ``(bins, frames)``, about -1 to 1."""
        size = self.limit or max(samples.size, self.shortest)
        padded = np.pad(samples.astype(np.float64), (0, size - samples.size))
        padded = np.pad(padded, self.fft_size // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.fft_size)[:: self.hop][:-1]
        hann = np.hanning(self.fft_size + 1)[:-1]
        power = np.abs(np.fft.rfft(frames * hann, axis=-1)) ** 2
        filters = mel_filters(self.bins, self.fft_size, self.rate)
        mel = np.log10(np.maximum(power @ filters, 1e-10))
        mel = (np.maximum(mel, mel.max() - _DYNAMIC_RANGE) + 4) / 4
        padded = np.pad(mel, ((0, -len(mel) % self.multiple), (0, 0)))
        return np.ascontiguousarray(padded.T, np.float32)


def _masked_spectrogram(
    settings: dict[str, Any], hop: int, bins: Any, frames: Any
) -> dict[str, Any]:
    """Pad to the frames that the encoder reads, to its windows, or to the length in settings."""
    if isinstance(frames, int):
        padding = {"limit": frames * hop}
    elif "n_window" in settings:
        padding = {
            "multiple": max(1, 2 * settings["n_window"]),
            "shortest": max(settings.get("min_length") or 0, settings["n_fft"]),
        }
    else:
        padding = {"limit": settings.get("chunk_length", 0) * settings.get("sampling_rate", _RATE)}
    return {"bins": bins, "fft_size": settings["n_fft"], "hop": hop, "masked": True, **padding}


def mel_filters(bins: int, fft_size: int, rate: int) -> NDArray[np.float64]:
    """Make triangles of equal area on Slaney's mel scale: ``(fft_size // 2 + 1, bins)``."""
    step = np.log(6.4) / 27  # linear up to 1000 Hz, which is mel 15; logarithmic above
    top = 15 + np.log(8000 / 1000) / step
    mels = np.linspace(0, top, bins + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))
    frequencies = np.linspace(0, rate // 2, fft_size // 2 + 1)[:, None]
    up = (frequencies - edges[:-2]) / np.diff(edges)[:-1]
    down = (edges[2:] - frequencies) / np.diff(edges)[1:]
    widths = edges[2:] - edges[:-2]
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(up, down)) * 2 / widths
    return filters


def read_wav(path: str | os.PathLike[str], rate: int = _RATE) -> NDArray[np.float32]:
    """Read the samples of a WAV file, ``(count,)`` from -1 to 1: mono, 16 bits, at ``rate``.

    Raises:
        AudioError: if it cannot be read, is cut short, or has another format.
    """
    convert = f"convert it, as with ffmpeg -i in.wav -ar {rate} -ac 1 -c:a pcm_s16le out.wav"
    try:
        with wave.open(io.BytesIO(_as_plain_pcm(Path(path).read_bytes())), "rb") as file:
            channels, width, count = file.getnchannels(), file.getsampwidth(), file.getnframes()
            file_rate, data = file.getframerate(), file.readframes(count)
    except (OSError, EOFError, RuntimeError, wave.Error) as error:  # RuntimeError: chunk sizes
        why = str(error) or "it ends in its header"
        hint = f"; {convert}" if "unknown format" in why else ""
        raise AudioError(f"{path}: not a readable WAV file ({why}){hint}") from error
    if (channels, width, file_rate) != (1, 2, rate):
        raise AudioError(
            f"{path}: has {file_rate} Hz, {8 * width} bits, {channels} channel(s); the model "
            f"accepts {rate} Hz, 16 bits, mono: {convert}"
        )
    if count >= _UNKNOWN_SIZE // 2:  # written to a pipe: read to the end of the file
        count = len(data) // 2
        data = data[: 2 * count]
    if len(data) != 2 * count or not count:
        raise AudioError(
            f"{path}: holds {len(data) // 2} samples, and its header says {count}; "
            "it is cut short or empty: copy or record it again"
        )
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)


def _as_plain_pcm(data: bytes) -> bytes:
    """Give an extensible WAV file of integers a plain header; Python reads it from 3.12 on."""
    start = 12
    while data[start : start + 4] not in (b"fmt ", b""):
        start += 8 + (int.from_bytes(data[start + 4 : start + 8], "little") + 1 & ~1)
    tag, subformat = data[start + 8 : start + 10], data[start + 32 : start + 48]
    if tag == _EXTENSIBLE_FORMAT and subformat == _PCM_SUBFORMAT:
        return data[: start + 8] + _PCM_SUBFORMAT[:2] + data[start + 10 :]
    return data


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a processor; empty if the file is missing, refused if not valid."""
    data = read_json(path)
    numbers = ("sampling_rate", "hop_length", "n_fft")
    if any(not isinstance(data.get(name, 1), int) or data.get(name, 1) < 1 for name in numbers):
        raise BundleError(f"{path}: {', '.join(numbers)} must be numbers above 0")
    return data
