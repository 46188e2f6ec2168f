"""The measuring protocol for speech, the same for every row.

In this order: memory before the model, the time to open it, the first clip untimed, then all of
them timed from samples to text, and memory with the model still open.
"""

from __future__ import annotations

import argparse
import json
import time
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from _measure import Memory, file_bytes

RATE = 16000

Samples = npt.NDArray[np.float32]
Transcribe = Callable[[Samples], str]
Open = Callable[[Path, int], Transcribe]
"""Opens a model, given its path and the number of threads."""


def main(open_model: Open) -> None:
    """Measure once and print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--clips", type=Path, required=True, help="directory of .wav files")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    clips = {file.name: read(file) for file in sorted(options.clips.glob("*.wav"))}

    before = Memory.read()
    start = time.perf_counter()
    transcribe = open_model(options.model, options.threads)
    load_seconds = time.perf_counter() - start
    transcribe(next(iter(clips.values())))

    start = time.perf_counter()
    texts = {name: transcribe(samples) for name, samples in clips.items()}
    seconds = time.perf_counter() - start
    after = Memory.read()
    result = {
        "load_seconds": load_seconds,
        "transcription_seconds": seconds,
        "audio_seconds": sum(map(len, clips.values())) / RATE,
        "rss_bytes": after.resident - before.resident,
        "anonymous_bytes": after.anonymous - before.anonymous,
        "file_bytes": file_bytes(options.model),
        "texts": texts,
    }
    print(json.dumps(result), flush=True)


def read(file: Path) -> Samples:
    """Samples from -1 to 1."""
    with wave.open(str(file)) as clip:
        kind = (clip.getframerate(), clip.getnchannels(), clip.getsampwidth())
        if kind != (RATE, 1, 2):
            raise ValueError(f"{file}: not {RATE} Hz, one channel, 16 bits")
        samples = np.frombuffer(clip.readframes(clip.getnframes()), "<i2")
        return samples.astype(np.float32) / np.float32(32768)
