"""Models that attend in windows, and what they ask about their mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from edgetie.export.attention.mask_branches import ResolveMaskBranches
from edgetie.export.exporter import export_model
from edgetie.sources.source import Source

VOCAB = 320


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


def test_windows_at_any_length(tmp_path: Path) -> None:
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


def test_encoder_reads_whole_windows(tmp_path: Path) -> None:
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


class Asking(nn.Module):
    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = (1 - mask) * torch.tensor(-5.0)
        scores[mask == 3] = 1.0
        asked = {"global": scores > 0, "padding": scores < 0, "tokens": ids > 7}[self.question]
        with ResolveMaskBranches(mask):
            return -scores if asked.any() else scores


@pytest.mark.parametrize("question", ["global", "padding", "tokens"])
def test_only_what_every_mask_answers_alike_is_answered(question: str) -> None:
    given = torch.ones(2, 6, dtype=torch.long), torch.ones(2, 6, dtype=torch.long)
    shapes = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in given)
    module = Asking(question)
    if question != "global":
        with pytest.raises(GuardOnDataDependentSymNode):
            torch.export.export(module, given, dynamic_shapes=shapes, strict=False)
        return
    program = torch.export.export(module, given, dynamic_shapes=shapes, strict=False)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    np.testing.assert_array_equal(program.module()(mask, mask), (1 - mask) * -5.0)
