"""edgetie: its runtime, as `edgetie generate --audio` uses it."""

from __future__ import annotations

from pathlib import Path

from _speech import Samples, Transcribe, main

from edgetie.runtime.audio.transcription import transcribe
from edgetie.runtime.session import open_session
from edgetie.runtime.text.tokenizer import Tokenizer


def open_model(path: Path, threads: int) -> Transcribe:
    session = open_session(path, provider="cpu", threads=threads)
    tokenizer = Tokenizer.from_bundle(session.bundle)

    def write_down(samples: Samples) -> str:
        return "".join(chunk.text for chunk in transcribe(session, tokenizer, samples))

    return write_down


main(open_model)
