"""Causal models: what a trial run finds, and modules written in the ways that people write them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch

from edgetie.errors import EdgetieError, ExportError
from edgetie.export.exporter import export_model
from edgetie.export.tasks.causal import CausalTask, trial_run
from edgetie.export.tasks.causal_model import CausalCall
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session
from edgetie.sources.source import Source


@dataclass
class Settings:
    """A configuration that is none of transformers'."""

    n_embd: int = 64
    block_size: int = 128


class Configured(models.HandWritten):
    def __init__(self) -> None:
        super().__init__()
        self.config = Settings()


class LossFirst(models.HandWritten):
    def forward(self, input_ids: Any, position_ids: Any, labels: Any = None) -> Any:
        return {"logits": (None, super().forward(input_ids, position_ids))}


class Short(models.Cacheless):
    """For 32 tokens, and it checks that."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = torch.nn.Embedding(32, 64)

    def forward(self, input_ids: Any) -> Any:
        assert input_ids.shape[1] <= 32
        return super().forward(input_ids)


class FewTokens(models.HandWritten):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(10, 64)
        self.head = torch.nn.Linear(64, 10, bias=False)
        self.head.weight = self.tokens.weight


class LastOnly(models.Cacheless):
    def forward(self, input_ids: Any, targets: Any = None) -> Any:
        return super().forward(input_ids)[:, [-1], :], None


def source(module: torch.nn.Module) -> Source:
    config = getattr(module, "config", None)
    return Source("factory", "own", module.eval(), config, lambda target: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "longest"), [(Configured, 128), (LossFirst, 128), (Short, 32), (FewTokens, 128)]
)
def test_tokens_are_those_of_torch(tmp_path: Path, kind: Any, longest: int) -> None:
    torch.manual_seed(0)
    module = kind()
    report = export_model(source(module), tmp_path / "bundle")
    assert report.agreement.relative < 1e-4
    assert report.manifest.signature.max_positions == longest
    session = open_session(report.bundle)
    steps = generate(session, [[5, 7, 3]], max_new_tokens=200, stop_token_ids=frozenset())
    tokens = [5, 7, 3] + [int(step.tokens[0]) for step in steps]
    assert len(tokens) == longest + 1  # the last one is not read
    whole = torch.tensor([tokens[:-1]])
    positions = () if kind is Short else (torch.arange(longest)[None],)
    with torch.no_grad():
        output = module(whole, *positions)
    logits = output["logits"][1] if isinstance(output, dict) else output
    chosen = logits[0, 2:].argmax(-1).tolist()
    assert sum(a == b for a, b in zip(chosen, tokens[3:], strict=True)) > 0.98 * len(chosen)


def trial(module: Any) -> CausalTask:
    return trial_run(module, getattr(module, "config", None))


def test_transformers_models_have_a_cache() -> None:
    task = trial(models.transformers_model("Llama"))
    assert task.call == CausalCall("transformers")
    assert [tensor.past for tensor in task.cache[:2]] == [
        "past_key_values.0.key", "past_key_values.0.value",
    ]  # fmt: skip
    assert {tensor.sizes for tensor in task.cache} == {(2, 0, 16)}
    assert (task.vocab_size, task.max_positions) == (models.VOCAB, 128)
    assert (task.cached_attentions, task.replaces_attention) == (2, True)
    assert task.no_cache_reason is None


def test_embeddings_of_positions_are_found() -> None:
    task = trial(models.transformers_model("OPT"))
    assert list(task.call.position_tables.values()) == [2]
    assert task.max_positions == 128


def test_causal_attention_gets_a_cache() -> None:
    task = trial(models.hand_written())
    assert task.call == CausalCall("positions", True, {"positions.weight": 0})
    assert [tensor.name for tensor in task.cache] == ["0.key", "0.value", "1.key", "1.value"]
    assert not task.replaces_attention
    assert task.max_positions == 128


@pytest.mark.parametrize(
    ("build", "position_ids", "reason"),
    [
        (models.odd_heads, True, "head sizes 12, 12, 12"),
        (models.cacheless, False, "forward takes neither a cache nor position_ids"),
    ],
)
def test_models_without_a_cache(build: Any, position_ids: bool, reason: str) -> None:
    task = trial(build())
    assert (task.call.mode, task.call.position_ids) == ("no_cache", position_ids)
    assert (task.cache, task.no_cache_reason) == ((), reason)
    assert task.without_cache() is None


def test_a_cache_that_does_not_work_is_left_out() -> None:
    task = trial(models.hand_written())
    plain = task.without_cache()
    assert isinstance(plain, CausalTask)
    assert (plain.call.mode, plain.cache) == ("no_cache", ())
    assert plain.call.position_tables == task.call.position_tables


@pytest.mark.parametrize("limit", [None, 128, 5, 2])
def test_examples_are_no_longer_than_the_model_allows(limit: int | None) -> None:
    task = replace(trial(models.hand_written()), max_positions=limit)
    (graph,) = task.graphs(models.hand_written(), fused=True, last_only=True)
    ids, mask, *past = graph.arguments
    assert ids.shape[1] + past[0].shape[2] == mask.shape[1] <= (limit or 24)
    assert graph.inputs[2:] == [tensor.past for tensor in task.cache]
    assert len(graph.shapes[2]) == len(past) == 4
    (plain,) = task.without_cache().graphs(models.hand_written(), fused=True, last_only=True)
    assert len(plain.arguments) == len(plain.shapes) == len(plain.inputs) == 2


def test_the_reference_has_the_shortest_prompts_too() -> None:
    module = models.hand_written()
    reference = trial(module).run_reference(module)
    tokens = torch.from_numpy(reference.inputs["input_ids"])
    assert reference.logits.shape == (16 + 2, models.VOCAB)
    with torch.no_grad():
        pair = module(tokens[None, :2], torch.arange(2)[None])[0].numpy()
    np.testing.assert_allclose(reference.logits[-2:], pair, atol=1e-5)
    np.testing.assert_allclose(reference.logits[:2], pair, atol=1e-5)


def test_logits_of_one_token_are_refused() -> None:
    module = LastOnly()
    with pytest.raises(ExportError, match=r"logits of 1 of .* those of every token"):
        trial(module).run_reference(module)


def test_logits_that_depend_on_later_tokens_are_refused() -> None:
    class Bidirectional(models.Cacheless):
        def forward(self, input_ids: Any) -> Any:
            logits = super().forward(input_ids)
            return logits + logits.mean(1, keepdim=True)

    module = Bidirectional()
    with pytest.raises(ExportError, match="change with the tokens that follow"):
        trial(module).run_reference(module)


@pytest.mark.slow
def test_several_sequences_go_on_token_by_token(tmp_path: Path) -> None:
    report = export_model(source(models.hand_written()), tmp_path / "bundle")
    decoder = Decoder(open_session(report.bundle), 2, 16)
    decoder.prefill(np.array([[3, 4, 5], [6, 7, 8]]))
    with pytest.raises(EdgetieError, match="go on with step"):
        decoder.prefill(np.array([[3, 4], [6, 7]]))
    assert decoder.step(np.array([3, 6])).shape == (2, models.VOCAB)
