"""Encoder-decoder models: caches of a trial run, and the wrappers of both graphs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from seq2seq_models import make

from edgetie.export.tasks.seq2seq import describe_caches, trial_run


def test_trial_run_and_graphs() -> None:
    model = make("T5")
    task = trial_run(model, model.config)
    assert (task.vocab_size, task.hidden_size, task.source_length) == (512, 64, 7)
    assert [tensor.name for tensor in task.cache[:2]] == ["0.decoder.key", "0.decoder.value"]
    assert [tensor.name for tensor in task.cross[:2]] == ["0.encoder.key", "0.encoder.value"]
    assert not task.replaces_attention
    encoder, decoder = task.graphs(model, fused=True, last_only=True)
    assert encoder.inputs == ["input_ids", "attention_mask"]
    assert encoder.outputs == ["last_hidden_state", *(t.present for t in task.cross)]
    assert decoder.inputs[:2] == ["input_ids", "encoder_attention_mask"]
    assert len(decoder.inputs) == 2 + 4 + 4
    assert decoder.outputs == ["logits", *(t.present for t in task.cache)]


def test_both_wrappers_give_the_logits_of_the_model() -> None:
    model = make("Bart")
    task = trial_run(model, model.config)
    encoder, decoder = (graph.module for graph in task.graphs(model, fused=True, last_only=True))
    source, mask = torch.tensor([[5, 6, 7, 1], [8, 9, 0, 0]]), torch.tensor([[1] * 4, [1, 1, 0, 0]])
    target = torch.tensor([[2, 11, 12], [2, 13, 14]])
    past = [torch.zeros(tensor.shape(2)) for tensor in task.cache]
    with torch.no_grad():
        expected = model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
        hidden, *cross = encoder(source, mask)
        first, *past = decoder(target[:, :2], mask, *cross, *past)
        second, *past = decoder(target[:, 2:], mask, *cross, *past)
    assert hidden.shape == (2, 4, 64)
    logits = torch.cat([first, second], dim=1)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert past[0].shape[2] == 3


def test_reference_and_feeds() -> None:
    model = make("T5")
    task = trial_run(model, model.config)
    reference = task.run_reference(model)
    assert reference.logits.shape == (2 * 8, 512)
    single, pair = task.encoder_feeds(reference, np.float32)
    np.testing.assert_array_equal(pair["input_ids"][:1], single["input_ids"])
    assert pair["attention_mask"].sum(1).tolist() == [12, 7]


def test_models_without_caches_are_refused() -> None:
    model = make("T5")
    with pytest.raises(TypeError, match="returns no self attention cache"):
        describe_caches(model, SimpleNamespace())
