"""A decoder's ONNX file in a plain ONNX Runtime session, see `_onnx.py`."""

from __future__ import annotations

from pathlib import Path

from _accuracy import Logits
from _measure import Emit, Generate, main
from _onnx import Decoder


def open_model(path: Path, threads: int, length: int) -> Generate:
    decoder = Decoder(path, threads)

    def generate(prompt: list[int], count: int, emit: Emit) -> None:
        decoder.reset()
        step = prompt
        for _ in range(count):
            token = int(decoder.read(step)[-1].argmax())
            emit(token)
            step = [token]

    return generate


def open_logits(path: Path, threads: int, length: int) -> Logits:
    return Decoder(path, threads).logits


main(open_model, open_logits)
