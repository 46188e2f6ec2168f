"""A loaded model knows its task and its architecture."""

from __future__ import annotations

import torch
import transformers

from edgetie.sources.source import Source


def test_the_class_of_the_module_decides_the_task() -> None:
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    model = transformers.BertForMaskedLM(config)
    source = Source("transformers", "bert", model, config, lambda target: None)
    assert source.architecture == "BertForMaskedLM"
    assert source.task == "masked-lm"


def test_a_task_that_is_named_stays() -> None:
    module = torch.nn.Linear(2, 2)
    assert Source("factory", "m", module, None, lambda target: None).task == "causal-lm"
    assert (
        Source("factory", "m", module, None, lambda target: None, "masked-lm").task == "masked-lm"
    )
