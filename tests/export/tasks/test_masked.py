"""Masked language models: their inputs and their reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edgetie.export.tasks.masked import MaskedTask, trial_run

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 32,
}  # fmt: skip


def small(**changes: Any) -> Any:
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, **changes)).eval()


@pytest.mark.parametrize(
    ("types", "inputs"),
    [
        (2, ("input_ids", "attention_mask", "token_type_ids")),
        (1, ("input_ids", "attention_mask")),
    ],
)
def test_inputs(types: int, inputs: tuple[str, ...]) -> None:
    model = small(type_vocab_size=types)
    task = trial_run(model, model.config)
    assert task == MaskedTask(50, 32, inputs, types)
    assert not task.replaces_attention
    assert task.without_cache() is None


def test_graph_and_wrapper() -> None:
    model = small()
    task = trial_run(model, model.config)
    (graph,) = task.graphs(model, fused=True, last_only=True)
    assert graph.inputs == ["input_ids", "attention_mask", "token_type_ids"]
    assert [tuple(example.shape) for example in graph.arguments] == [(2, 8)] * 3
    with torch.no_grad():
        logits = graph.module(*graph.arguments)
        expected = model(**dict(zip(graph.inputs, graph.arguments, strict=True))).logits
    assert torch.equal(logits, expected)


def test_the_reference_has_a_padded_batch_item() -> None:
    model = small()
    reference = trial_run(model, model.config).run_reference(model)
    ids = torch.from_numpy(reference.inputs["input_ids"])
    assert ids.shape == (1, 16)
    assert reference.logits.shape == (16 + 7, 50)
    with torch.no_grad():
        types = torch.from_numpy(reference.inputs["token_type_ids"][:, :7])
        alone = model(ids[:, :7], token_type_ids=types).logits[0].numpy()
    np.testing.assert_allclose(reference.logits[16:], alone, atol=1e-5)
