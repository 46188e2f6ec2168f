"""Tasks, detected from classes and configurations of transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from edgetie.sources.task_detection import TASKS, auto_class, task_of


@pytest.mark.parametrize(
    ("config", "architectures", "task"),
    [
        (None, None, "causal-lm"),
        (SimpleNamespace(), None, "causal-lm"),
        (SimpleNamespace(model_type="zorp"), None, "causal-lm"),
        (SimpleNamespace(model_type="llama"), None, "causal-lm"),
        (SimpleNamespace(model_type="bert"), None, "masked-lm"),
        (SimpleNamespace(model_type="bert", is_decoder=True), None, "causal-lm"),
        (SimpleNamespace(model_type="bert"), ["BertLMHeadModel"], "causal-lm"),
        (SimpleNamespace(model_type="t5", is_encoder_decoder=True), None, "seq2seq-lm"),
        (SimpleNamespace(model_type="whisper", is_encoder_decoder=True), None, "speech-seq2seq"),
        (SimpleNamespace(model_type="llava"), None, "image-text-to-text"),
        (SimpleNamespace(model_type="gemma3"), None, "image-text-to-text"),  # listed as both
        (SimpleNamespace(model_type="git"), None, "image-to-text"),
        (SimpleNamespace(model_type="x"), ["Gemma3ForCausalLM"], "causal-lm"),
        (SimpleNamespace(model_type="blip"), None, "image-to-text"),
        (SimpleNamespace(model_type="florence2", is_encoder_decoder=True), None, "image-to-text"),
        (SimpleNamespace(model_type="t5gemma2", is_encoder_decoder=True), None, "seq2seq-lm"),
        (
            SimpleNamespace(model_type="x", is_encoder_decoder=True),
            ["VisionEncoderDecoderModel"],
            "image-to-text",
        ),
        (SimpleNamespace(model_type="x", architectures=["LlamaForCausalLM"]), None, "causal-lm"),
    ],
)
def test_tasks(config: Any, architectures: list[str] | None, task: str) -> None:
    assert task_of(config, architectures) == task


def test_every_task_has_a_class_that_loads_it() -> None:
    assert auto_class("causal-lm") is transformers.AutoModelForCausalLM
    loads_images = transformers.AutoModelForImageTextToText
    assert auto_class("image-text-to-text") is auto_class("image-to-text") is loads_images
    assert len({auto_class(task) for task in TASKS}) == len(TASKS) - 1
