"""Synthetic audio to calibrate a speech model on: noises similar to a voice."""

import logging
from typing import Any

import numpy as np
import onnxruntime as ort

from edgetie.bundle.bundle import Bundle
from edgetie.errors import BundleError
from edgetie.runtime.audio.embeddings import random_features
from edgetie.runtime.audio.features import FeatureExtractor
from edgetie.runtime.session import session_options

logger = logging.getLogger(__name__)

_SECONDS = (3.0, 6.0, 12.0, 24.0)  # of each clip, or less if the model reads less
_SEED = 20240229

Array = np.ndarray[Any, Any]


def calibration_audio(bundle: Bundle) -> tuple[list[dict[str, Array]], str]:
    """Return the encoder's inputs for a few audio clips, and a description of them.

    Models without an audio encoder have none.
    """
    encoder = bundle.manifest.encoder
    if encoder is None or encoder.inputs[0].name == "input_ids":
        return [], ""
    random = np.random.default_rng(_SEED)
    try:
        extractor = FeatureExtractor.from_bundle(bundle)
    except BundleError:
        logger.debug("%s: no features of audio, random ones", bundle.directory, exc_info=True)
        session = ort.InferenceSession(
            str(bundle.model_paths[0]), session_options(1), enable_fallback=0
        )
        feeds = [random_features(session, random) for _ in _SECONDS]
        return feeds, f"{len(feeds)} clips of random features"
    longest = extractor.limit / extractor.rate if extractor.limit else _SECONDS[-1]
    audio = [synthetic_voice(random, min(s, longest), extractor.rate) for s in _SECONDS]
    feeds = [extractor.feeds(samples) for samples in audio]
    return feeds, f"{len(feeds)} clips of a synthetic voice"


def synthetic_voice(random: np.random.Generator, seconds: float, rate: int) -> Array:
    """Make syllables of changing pitch, hisses and pauses: ``(samples,)``, float32."""
    count = max(1, int(seconds * rate))
    parts: list[Array] = []
    while sum(map(len, parts)) < count:
        length = int(rate * random.uniform(0.08, 0.35))
        kind = random.choice(["vowel", "hiss", "pause"], p=[0.6, 0.2, 0.2])
        if kind == "pause":
            parts.append(np.zeros(length))
            continue
        pitch = random.uniform(90, 230) * np.linspace(1, random.uniform(0.8, 1.2), length)
        pulses = np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0)  # one a period
        source = pulses if kind == "vowel" else 0.1 * random.standard_normal(length)
        low, high = (250, 3500) if kind == "vowel" else (2500, 7000)
        formants = random.uniform(low, min(high, rate / 2), 3)
        frequencies = np.fft.rfftfreq(length, 1 / rate)
        shape = sum(1 / (1 + ((frequencies - f) / 80) ** 2) for f in formants)
        syllable = np.fft.irfft(np.fft.rfft(source) * shape, length)
        parts.append(
            syllable / np.abs(syllable).max() * np.hanning(length) * random.uniform(0.1, 1)
        )
    samples = np.concatenate(parts)[:count] + 1e-3 * random.standard_normal(count)
    return np.asarray(0.5 * samples, np.float32)
