"""onnxruntime-genai: its own generator loop on what its own model builder wrote."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime_genai as og  # type: ignore[import-not-found, unused-ignore]
from _accuracy import Logits
from _measure import Emit, Generate, main
from _onnx import Decoder


def open_model(path: Path, threads: int, length: int) -> Generate:
    config = og.Config(str(path))
    session_options = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session_options}}}))
    model = og.Model(config)

    def generate(prompt: list[int], count: int, emit: Emit) -> None:
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=length)
        generator = og.Generator(model, params)
        generator.append_tokens(prompt)
        for _ in range(count):
            generator.generate_next_token()
            emit(int(generator.get_next_tokens()[0]))

    return generate


def open_logits(path: Path, threads: int, length: int) -> Logits:
    """Its generator gives logits of the last position only, so the file runs without it."""
    config = json.loads((path / "genai_config.json").read_text(encoding="utf-8"))
    return Decoder(path, threads, config["model"]["decoder"]["head_size"]).logits


main(open_model, open_logits)
