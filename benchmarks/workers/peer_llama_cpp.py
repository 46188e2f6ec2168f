"""llama.cpp through llama-cpp-python: its decoder, and arg-max over the logits in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from _accuracy import Logits
from _measure import Emit, Generate, main


def _open(path: Path, threads: int, length: int, **options: Any) -> llama_cpp.Llama:
    (gguf,) = path.glob("*.gguf")
    return llama_cpp.Llama(
        str(gguf),
        n_ctx=length,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
        **options,
    )


def open_model(path: Path, threads: int, length: int) -> Generate:
    model = _open(path, threads, length)

    def generate(prompt: list[int], count: int, emit: Emit) -> None:
        model.reset()  # type: ignore[no-untyped-call, unused-ignore]
        step = prompt
        for _ in range(count):
            model.eval(step)
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            token = int(np.ctypeslib.as_array(logits, shape=(model.n_vocab(),)).argmax())
            emit(token)
            step = [token]

    return generate


def open_logits(path: Path, threads: int, length: int) -> Logits:
    model = _open(path, threads, length, logits_all=True, n_batch=length)

    def logits(ids: list[int]) -> npt.NDArray[np.float32]:
        model.reset()  # type: ignore[no-untyped-call, unused-ignore]
        model.eval(ids)
        rows: npt.NDArray[np.float32] = model.scores[: len(ids)]
        return rows

    return logits


main(open_model, open_logits)
