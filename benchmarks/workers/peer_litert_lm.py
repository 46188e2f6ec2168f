"""LiteRT-LM: its session on a prompt as text, and each piece of text that it streams as a token."""

from __future__ import annotations

from pathlib import Path

from _measure import Emit, Generate, main
from litert_lm import Backend, Engine, SamplerConfig  # type: ignore[import-not-found, unused-ignore]


def open_model(path: Path, threads: int, length: int) -> Generate:
    engine = Engine(str(path / "model.litertlm"), backend=Backend.CPU(thread_count=threads))

    def generate(prompt: list[int], count: int, emit: Emit) -> None:
        session = engine.create_session(
            apply_prompt_template=False,
            sampler_config=SamplerConfig(top_k=1),
            max_output_tokens=count,
        )
        with session:
            session.run_prefill([engine.detokenize(prompt)])
            for part in session.run_decode_async():
                for token in engine.tokenize(part.texts[0]):
                    emit(token)

    return generate


main(open_model)
