"""Audio language models: audio embeddings in place of tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edgetie.export.tasks.audio_lm import EmbeddingLM, _Decoder, is_audio_model, trial_run

TOKEN = 60


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 8, "num_key_value_heads": 2,
    }  # fmt: skip
    config = transformers.GlmAsrConfig(
        audio_config={
            "model_type": "glmasr_encoder", **sizes, "num_mel_bins": 10, "intermediate_size": 64,
        },
        text_config={"model_type": "llama", **sizes, "vocab_size": 64},
        audio_token_id=TOKEN,
        tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.GlmAsrForConditionalGeneration(config).eval()


def test_trial_run_and_graphs(model: Any) -> None:
    assert is_audio_model(model)
    task = trial_run(model, model.config)
    assert (task.audio_token_id, task.hidden_size, task.attention_window) == (TOKEN, 16, None)
    assert task.is_dynamic
    assert task.shape[1 - task.time_axis] == 10
    assert task.call.mode == "transformers"
    encoder, decoder = task.graphs(model, fused=False, last_only=False)
    assert encoder.inputs[0] == "input_features"
    assert encoder.outputs == ["audio_embeds"]
    assert decoder.inputs[:3] == ["input_ids", "attention_mask", "audio_embeds"]
    assert decoder.arguments[2].shape == (5, 16)


def test_both_wrappers_give_the_logits_of_the_model(model: Any) -> None:
    task = trial_run(model, model.config)
    encoder, decoder = (g.module for g in task.graphs(model, fused=False, last_only=False))
    reference = task.run_reference(model)
    ids = torch.from_numpy(reference.inputs["ids.0"])
    feeds = task._encoder_feeds(torch.from_numpy(reference.inputs["features.0"]))
    past = [torch.zeros(tensor.shape(1)) for tensor in task.cache]
    with torch.no_grad():
        audio = encoder(*feeds.values())
        logits, *_ = decoder(ids, torch.ones_like(ids), audio, *past)
    assert audio.shape == (int((ids == TOKEN).sum()), 16)
    np.testing.assert_allclose(logits[0], reference.logits[: ids.shape[1]], atol=1e-4)


class Counting(torch.nn.Module):
    """Its logits are the embeddings that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(8, 2)
        self.audio: Any = None

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def get_audio_features(self, input_features: torch.Tensor) -> Any:
        return SimpleNamespace(pooler_output=input_features)

    def forward(self, inputs_embeds: torch.Tensor, input_features: Any = None) -> torch.Tensor:
        if input_features is not None:
            self.audio = self.get_audio_features(input_features).pooler_output
            return inputs_embeds + self.audio
        return inputs_embeds


def test_audio_tokens_are_replaced_in_their_order() -> None:
    model = Counting()
    embedded = EmbeddingLM(model, adds_audio=False)
    decoder = _Decoder(lambda ids, mask: embedded(ids), embedded, 7)
    ids = torch.tensor([[1, 7, 7], [7, 2, 3]])
    audio = torch.tensor([[10.0, 10], [20, 20], [30, 30]])
    logits = decoder(ids, torch.ones_like(ids), audio)
    table = model.embedding.weight
    torch.testing.assert_close(logits[0], torch.stack([table[1], audio[0], audio[1]]))
    torch.testing.assert_close(logits[1], torch.stack([audio[2], table[2], table[3]]))
    assert embedded.embeddings is None
    torch.testing.assert_close(embedded(ids), table[ids])


def test_audio_is_added_once_to_each_token() -> None:
    model = Counting()
    embedded = EmbeddingLM(model, adds_audio=True)
    decoder = _Decoder(lambda ids, mask: embedded(ids), embedded, None)
    ids, audio = torch.tensor([[1, 2]]), torch.tensor([[[10.0, 10], [20, 20]]])
    logits = decoder(ids, torch.ones_like(ids), audio)
    torch.testing.assert_close(logits, model.embedding.weight[ids] + audio)
    assert not model.audio.any()
    assert "get_audio_features" not in vars(model)


def test_encoder_decoder_models_are_not_audio_language_models() -> None:
    model = Counting()
    assert is_audio_model(model)
    model.config = SimpleNamespace(is_encoder_decoder=True)
    assert not is_audio_model(model)
    assert not is_audio_model(torch.nn.Linear(2, 2))
