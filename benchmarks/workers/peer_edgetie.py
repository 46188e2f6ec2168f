"""edgetie: its runtime and its kernels, as `edgetie generate` uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _accuracy import Logits
from _measure import Emit, Generate, main

from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.session import open_session


def open_model(path: Path, threads: int, length: int, *, provider: str = "auto") -> Generate:
    decoder = Decoder(open_session(path, provider=provider, threads=threads), 1, length)

    def generate(prompt: list[int], count: int, emit: Emit) -> None:
        decoder.reset()
        ids = np.array([prompt], np.int64)
        logits = decoder.prefill(ids, np.ones_like(ids))
        for left in reversed(range(count)):
            token = logits.argmax(axis=-1)
            emit(int(token[0]))
            if left:
                logits = decoder.step(token)

    return generate


def open_logits(path: Path, threads: int, length: int, *, provider: str = "auto") -> Logits:
    # What `edgetie check` reads, imported here: timed runs need none of it in memory.
    from edgetie.harness.accuracy.references import BundleReference

    model = BundleReference(path, provider=provider, threads=threads)
    return lambda ids: model.logits(np.array([ids], np.int64))


if __name__ == "__main__":
    main(open_model, open_logits)
