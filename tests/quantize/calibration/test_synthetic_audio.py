"""Synthetic audio: a seeded voice, and features of it for speech models only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quantize_models import plain

from edgetie.bundle.bundle import open_bundle
from edgetie.quantize.calibration.synthetic_audio import calibration_audio, synthetic_voice


@pytest.mark.parametrize(("seconds", "rate"), [(0.5, 16_000), (1.25, 8_000), (0.0, 16_000)])
def test_a_voice_has_the_asked_length(seconds: float, rate: int) -> None:
    voice = synthetic_voice(np.random.default_rng(0), seconds, rate)
    assert voice.shape == (max(1, int(seconds * rate)),)
    assert voice.dtype == np.float32
    assert np.abs(voice).max() < 1


def test_a_voice_is_the_same_for_the_same_seed_only() -> None:
    first, same, other = (synthetic_voice(np.random.default_rng(n), 1, 8000) for n in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_voice_has_pauses_and_most_energy_in_low_frequencies() -> None:
    rate = 16_000
    voice = synthetic_voice(np.random.default_rng(0), 6, rate)
    loudness = np.square(voice[: len(voice) // 800 * 800].reshape(-1, 800)).mean(axis=1)
    assert (loudness < 1e-4).any()
    energy = np.square(np.abs(np.fft.rfft(voice)))
    assert energy[: len(energy) // 2].sum() > 3 * energy[len(energy) // 2 :].sum()


def test_models_of_text_have_none(tmp_path: Path) -> None:
    assert calibration_audio(open_bundle(plain(tmp_path))) == ([], "")
