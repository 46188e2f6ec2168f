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
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from edgetie.export.exporter import export
from edgetie.export.questions import MaskQuestions
from edgetie.runtime.generation import generate
from edgetie.runtime.session import open_session
from edgetie.sources import Source

VOCAB = 320
_COMMON = {"vocab_size": VOCAB, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def source_of(model: Any, task: str) -> Source:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Source("factory", "model", model, model.config, model.config.save_pretrained, task=task)


def test_longformer_at_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        **_COMMON, attention_window=[8, 4], hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=130, type_vocab_size=1,
    )  # fmt: skip
    model = transformers.LongformerForMaskedLM(config).eval()
    report = export(source_of(model, "masked-lm"), tmp_path / "bundle")
    assert report.agreement.relative < 1e-5
    assert not model.config.onnx_export
    graph = ir.load(report.bundle.model_path).graph
    tables = [v for v in graph.initializers.values() if v.const_value.size == VOCAB * 32]
    assert len(tables) == 1
    session = onnxruntime.InferenceSession(str(report.bundle.model_path))
    for length in (1, 5, 8, 9, 16, 29):
        ids = torch.randint(3, VOCAB, (2, length))
        mask = torch.ones_like(ids)
        mask[1, length // 2 + 1 :] = 0
        with torch.no_grad():
            expected = model(ids, attention_mask=mask).logits
        feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        (got,) = session.run(["logits"], feeds)
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_led_writes_like_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LEDConfig(
        **_COMMON, decoder_start_token_id=2, attention_window=8, d_model=32, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64,
    )  # fmt: skip
    model = transformers.LEDForConditionalGeneration(config).eval()
    report = export(source_of(model, "seq2seq-lm"), tmp_path / "bundle")
    assert report.agreement.relative < 1e-5
    prompts = [[5, 6, 7], list(range(20, 37))]
    session = open_session(report.bundle.directory, threads=1)
    steps = list(generate(session, prompts, max_new_tokens=5, stop_token_ids=frozenset()))
    for row, prompt in enumerate(prompts):
        target = [2]
        for step in steps:
            with torch.no_grad():
                given = {"input_ids": torch.tensor([prompt])}
                logits = model(**given, decoder_input_ids=torch.tensor([target])).logits[0, -1]
            target.append(int(step.tokens[row]))
            assert logits[target[-1]] >= logits.max() - 1e-3


class Asking(torch.nn.Module):
    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = (1 - mask) * torch.tensor(-5.0)
        scores[mask == 3] = 1.0
        asked = {"global": scores > 0, "padding": scores < 0, "tokens": ids > 7}[self.question]
        with MaskQuestions(mask):
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
