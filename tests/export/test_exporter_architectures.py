"""Models that count positions, choose experts, bound lengths or cache in ways of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import onnx_ir as ir
import pytest
import torch
from models import source_of
from torch import nn

from edgetie.errors import ExportError
from edgetie.export.exporter import ExportReport, export_model
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session

pytestmark = pytest.mark.slow

_COMMON = {
    "vocab_size": models.VOCAB, "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "is_decoder": True,
}  # fmt: skip
_KINDS: dict[str, dict[str, Any]] = {
    "Bart": {
        "d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 128,
    },
    "Marian": {
        "d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 128,
        "decoder_vocab_size": models.VOCAB,
    },
    "Roberta": {"intermediate_size": 128, "pad_token_id": 4, "max_position_embeddings": 133},
    "Falcon": {"multi_query": True, "new_decoder_architecture": False, "alibi": False},
    "Mixtral": {
        "intermediate_size": 96, "num_key_value_heads": 2, "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "GptOss": {
        "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8,
        "num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "MiniCPM3": {
        "intermediate_size": 128, "num_key_value_heads": 4, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8, "v_head_dim": 16, "q_lora_rank": 32, "kv_lora_rank": 32,
    },
    "GPTNeo": {
        "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "window_size": 8, "intermediate_size": 128,
    },
}  # fmt: skip


def make(kind: str) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**_COMMON, **_KINDS[kind]})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
            if parameter.ndim > 1 and "position" not in name:
                parameter.mul_(2)
    return model


def exported(kind: str, path: Path) -> ExportReport:
    report = export_model(source_of(make(kind), kind), path / kind)
    assert report.agreement.relative < 1e-5
    assert len(report.manifest.ties) == 1
    graph = ir.load(report.bundle.model_path).graph
    tables = [v for v in graph.initializers.values() if v.const_value.size == models.VOCAB * 64]
    assert len(tables) == 1
    return report


def assert_generates_like_torch(report: ExportReport, model: Any) -> None:
    prompts = [[7, 9, 11, 13, 17, 19, 23], [3, 5], [31]]
    session = open_session(report.bundle.directory, threads=1)
    steps = list(generate(session, prompts, max_new_tokens=6, stop_token_ids=frozenset()))
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        for step in steps:
            with torch.no_grad():
                expected = model(torch.tensor([ids])).logits[0, -1]
            got = int(step.tokens[row])
            # random models leave little between two tokens
            assert expected[got] >= expected.max() - 1e-3
            ids.append(got)


@pytest.mark.parametrize("kind", ["Bart", "Marian", "Roberta"])
def test_padding_is_not_counted_by_models_that_count_themselves(tmp_path: Path, kind: str) -> None:
    report = exported(kind, tmp_path)
    assert len(report.manifest.signature.inputs) == 2 + 2 * 2  # with a cache
    assert_generates_like_torch(report, make(kind))


def test_single_key_head_that_torch_broadcasts(tmp_path: Path) -> None:
    assert_generates_like_torch(exported("Falcon", tmp_path), make("Falcon"))


def test_experts_are_traced_and_their_implementation_is_restored(tmp_path: Path) -> None:
    model = make("Mixtral")
    before = model.get_experts_implementation()
    report = export_model(source_of(model), tmp_path / "experts")
    assert report.agreement.relative < 1e-5
    assert any(text.startswith("experts:") for text in report.manifest.fusion["unfused"])
    assert model.get_experts_implementation() == before
    assert_generates_like_torch(report, model)


def test_attention_sinks_are_an_input_of_attention(tmp_path: Path) -> None:
    report = exported("GptOss", tmp_path)
    assert report.manifest.fusion["operators"]["GroupQueryAttention"] == 2
    assert_generates_like_torch(report, make("GptOss"))


def test_values_of_another_head_size_than_keys(tmp_path: Path) -> None:
    report = exported("MiniCPM3", tmp_path)
    shapes = [i.shape for i in report.manifest.signature.inputs if "past" in i.name]
    assert shapes[0][3] != shapes[1][3]
    assert shapes[0::2] == [shapes[0]] * 2
    assert shapes[1::2] == [shapes[1]] * 2
    assert_generates_like_torch(report, make("MiniCPM3"))


def test_table_of_positions_bounds_a_dimension(tmp_path: Path) -> None:
    report = exported("GPTNeo", tmp_path)
    assert report.manifest.signature.max_positions == 128
    assert_generates_like_torch(report, make("GPTNeo"))


class Sliced(models.HandWritten):
    """Adds the first rows of a table, so that torch proves how long a sequence may be."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(rows, 64)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Branching(models.Cacheless):
    """Does something else for short prompts, which a trace for long ones cannot know."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = super().forward(input_ids)
        return logits if input_ids.shape[1] > 2 else -logits


class BranchingLate(models.Cacheless):
    """The same for long ones; no tensor of it has such a size."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = super().forward(input_ids)
        return logits if input_ids.shape[1] <= 30 else -logits


def test_longest_sequence_is_read_off_the_trace(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = export_model(source_of(Sliced(100).eval()), tmp_path / "sliced")
    assert report.manifest.signature.max_positions == 100
    report = export_model(source_of(Sliced(30).eval()), tmp_path / "few")
    assert report.manifest.signature.max_positions == 30
    with pytest.raises(ExportError, match="up to 30 tokens only"):
        export_model(source_of(BranchingLate().eval()), tmp_path / "short")
    assert not (tmp_path / "short").exists()


def test_branch_on_short_prompts_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(ExportError, match="logits differ"):
        export_model(source_of(Branching().eval()), tmp_path / "branching")


def test_model_that_sees_what_follows_is_refused(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(**{**_COMMON, "is_decoder": False})
    model = transformers.BertLMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    with pytest.raises(ExportError, match="change with the tokens that follow"):
        export_model(source_of(model), tmp_path / "bert")


def test_cache_that_is_wrong_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetie.export.tasks.causal import CausalTask
    from edgetie.export.tasks.causal_model import CausalLM

    original = CausalLM._call_transformers

    def wrong(self: Any, ids: Any, mask: Any, positions: Any, layers: Any) -> Any:
        return original(self, ids, mask, positions + 1, layers)

    monkeypatch.setattr(CausalLM, "_call_transformers", wrong)
    report = export_model(source_of(models.transformers_model("GPT2")), tmp_path / "plain")
    assert report.agreement.relative < 1e-5
    assert len(report.manifest.signature.inputs) == 2
    (why,) = report.manifest.fusion["unfused"]
    assert why.startswith("KV cache: with one, the exported model's logits differ")
    assert CausalTask.name == report.manifest.task
