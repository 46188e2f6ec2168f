"""torch through transformers: `generate` on the fp32 checkpoint, with sdpa attention."""

from __future__ import annotations

from pathlib import Path

import torch
from _measure import Emit, Generate, main
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer


class Streamer(BaseStreamer):  # type: ignore[misc]
    """Passes on each token, but not the prompt, which comes first."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.emit(int(value.item()))
        self.prompt_seen = True

    def end(self) -> None:
        """Nothing is kept back, so nothing is left to pass on."""


def open_model(path: Path, threads: int, length: int) -> Generate:
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.generation_config.eos_token_id = None

    def generate(prompt: list[int], count: int, emit: Emit) -> None:
        ids = torch.tensor([prompt])
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            streamer=Streamer(emit),
        )

    return generate


main(open_model)
