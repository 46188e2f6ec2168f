"""Inputs padded to whole windows, alone and in an exported model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from torch import nn

from edgetie.export.attention.window_padding import (
    attention_window,
    example_length,
    pad_to_window,
)
from edgetie.export.exporter import export_model
from edgetie.sources.source import Source

VOCAB = 320


def with_window(window: Any) -> nn.Module:
    module = nn.Identity()
    module.config = SimpleNamespace(attention_window=window, pad_token_id=1)
    return module


def test_the_largest_window_of_a_configuration() -> None:
    assert attention_window(with_window([8, 4])) == 8
    assert attention_window(with_window(6)) == 6
    assert attention_window(nn.Identity()) is None


def test_examples_are_longer_than_two_windows() -> None:
    assert example_length(with_window(8), 11) == 20
    assert example_length(with_window(2), 11) == 11
    assert example_length(nn.Identity(), 11) == 11


@pytest.mark.parametrize(("length", "padded"), [(3, 4), (4, 4), (5, 8)])
def test_padding_is_masked(length: int, padded: int) -> None:
    inputs = {"input_ids": torch.full((2, length), 7), "attention_mask": torch.ones(2, length)}
    assert pad_to_window(with_window(4), inputs) == length
    assert inputs["input_ids"].tolist() == [[7] * length + [1] * (padded - length)] * 2
    assert inputs["attention_mask"].sum(1).tolist() == [length] * 2
    assert inputs["attention_mask"].shape == (2, padded)


def test_models_without_windows_are_not_padded() -> None:
    inputs = {"input_ids": torch.ones(1, 3)}
    assert pad_to_window(nn.Identity(), inputs) is None
    assert inputs["input_ids"].shape == (1, 3)


def source_of(model: Any, task: str) -> Source:
    return Source("factory", "model", model, model.config, lambda target: None, task=task)


class Windowed(nn.Module):
    """Attends inside windows of 8 tokens; pads what it reads to whole ones, as Longformer does."""

    def __init__(self) -> None:
        super().__init__()
        self.config = transformers.PreTrainedConfig(attention_window=[8, 4], pad_token_id=1)
        self.tokens = nn.Embedding(VOCAB, 32)
        self.mix, self.head = nn.Linear(32, 32), nn.Linear(32, VOCAB)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        rows, length = input_ids.shape
        more = -length % 8
        if more > 0:
            input_ids = nn.functional.pad(input_ids, (0, more), value=1)
            attention_mask = nn.functional.pad(attention_mask, (0, more))
        assert input_ids.shape[1] % 8 == 0
        x = self.tokens(input_ids).reshape(rows, -1, 8, 32)
        seen = attention_mask.reshape(rows, -1, 1, 8).bool()
        if (attention_mask == 2).any():
            seen = seen.flip(-1)
        scores = (self.mix(x) @ x.transpose(2, 3)).masked_fill(~seen, -1e4)
        return self.head(torch.softmax(scores, -1) @ x).reshape(rows, -1, VOCAB)[:, :length]


@pytest.mark.slow
def test_exported_windows_at_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Windowed().eval()
    report = export_model(source_of(model, "masked-lm"), tmp_path / "bundle")
    assert report.agreement.relative < 1e-5
    assert not hasattr(model.config, "onnx_export")
    graph = ir.load(report.bundle.model_path).graph
    tables = [v for v in graph.initializers.values() if v.const_value.size == VOCAB * 32]
    assert len(tables) == 1
    session = onnxruntime.InferenceSession(str(report.bundle.model_path))
    for length in (1, 5, 8, 9, 16, 29):
        ids = torch.randint(3, VOCAB, (2, length))
        mask = torch.ones_like(ids)
        mask[1, length // 2 + 1 :] = 0
        with torch.no_grad():
            expected = model(ids, mask)
        feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        (got,) = session.run(["logits"], feeds)
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.slow
def test_exported_encoder_reads_whole_windows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCAB, decoder_start_token_id=0, d_model=32, d_kv=8, d_ff=64, num_layers=1,
        num_heads=4, attention_window=8,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    report = export_model(source_of(model, "seq2seq-lm"), tmp_path / "bundle")
    assert report.agreement.relative < 1e-5
    encoder = onnxruntime.InferenceSession(str(tmp_path / "bundle" / "encoder_model.onnx"))
    for length in (3, 8, 21):
        ids = torch.randint(3, VOCAB, (1, length))
        with torch.no_grad():
            expected = model.get_encoder()(ids)[0]
        feeds = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, length), np.int64)}
        (got,) = encoder.run(["last_hidden_state"], feeds)
        np.testing.assert_allclose(got, expected, atol=1e-4)
