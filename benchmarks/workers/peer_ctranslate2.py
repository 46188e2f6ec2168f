"""CTranslate2: its generator, one sequence at a time."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2  # type: ignore[import-not-found, unused-ignore]
import numpy as np
import numpy.typing as npt
from _accuracy import Logits
from _measure import Emit, Generate, main


def _open(path: Path, threads: int) -> ctranslate2.Generator:
    return ctranslate2.Generator(str(path), device="cpu", inter_threads=1, intra_threads=threads)


def open_model(path: Path, threads: int, length: int) -> Generate:
    generator = _open(path, threads)
    vocabulary = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))

    def generate(prompt: list[int], count: int, emit: Emit) -> None:
        def take(step: ctranslate2.GenerationStepResult) -> bool:
            emit(step.token_id)
            return False

        generator.generate_batch(
            [[vocabulary[token] for token in prompt]],
            min_length=count,  # never stopping early
            max_length=count,
            include_prompt_in_result=False,
            callback=take,
        )

    return generate


def open_logits(path: Path, threads: int, length: int) -> Logits:
    generator = _open(path, threads)

    def logits(ids: list[int]) -> npt.NDArray[np.float32]:
        rows: npt.NDArray[np.float32] = np.array(generator.forward_batch([ids]))[0]
        return rows

    return logits


main(open_model, open_logits)
