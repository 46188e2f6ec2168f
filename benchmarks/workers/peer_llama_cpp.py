"""llama.cpp through llama-cpp-python: its decoder, and arg-max over the logits in place."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
from _measure import Emit, Generate, main


def open_model(path: Path, threads: int, length: int) -> Generate:
    (gguf,) = path.glob("*.gguf")
    model = llama_cpp.Llama(
        str(gguf), n_ctx=length, n_threads=threads, n_threads_batch=threads, verbose=False
    )

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


main(open_model)
