"""Exported graphs against torch: logits, caches, padding, initializers, fused operators."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from models import source_of

from edgetie.errors import BundleError, EdgetieError, ExportError
from edgetie.export.exporter import ExportReport, _halve, export_model
from edgetie.export.tasks.base import logits_of
from edgetie.progress import Stages
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session
from edgetie.sources.source import Source

FUSED = ["Llama", "Qwen2", "Qwen3", "Gemma3Text", "SmolLM3", "OPT", "GPT2", "Mistral", "Gemma2"]
ROTARY_LAYERS = {"OPT": 0, "GPT2": 0, "SmolLM3": 1}
UNFUSED = ["Bloom"]
EITHER = ["GPTJ"]  # fused from transformers 5.24 on
Exported = Callable[[str], ExportReport]


def test_unknown_choices_are_refused_at_once(tmp_path: Path) -> None:
    source = source_of(models.cacheless())
    for parameter, value in (("precision", "int4"), ("logits", "some")):
        with pytest.raises(EdgetieError, match="unknown; one of") as raised:
            export_model(source, tmp_path / "out", **{parameter: value})
        assert (raised.value.parameter, raised.value.value) == (parameter, value)


def test_logits_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = models.cacheless()
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    with pytest.raises(ExportError, match="NaN or infinite"):
        export_model(source_of(model), tmp_path / "out")
    assert not list(tmp_path.iterdir())


class Switching(models.Cacheless):
    """Computes short texts in another way, and remembers that."""

    def __init__(self) -> None:
        super().__init__(layers=1)
        self.mode = "sparse"

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        self.mode = "full" if input_ids.shape[1] < 64 else self.mode
        return super().forward(input_ids)


def test_a_setting_that_a_short_text_changes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"turned mode from sparse to full.*set mode to full"):
        export_model(source_of(Switching()), tmp_path / "out")


def test_weights_and_tables_are_halved_but_vectors_in_buffers_are_not() -> None:
    module = torch.nn.Linear(4, 4)
    module.register_buffer("table", torch.ones(4, 4))
    module.register_buffer("frequencies", torch.ones(4))
    module.register_buffer("ids", torch.ones(4, 4, dtype=torch.long))
    _halve(module)
    assert module.weight.dtype == module.bias.dtype == module.table.dtype == torch.float16
    assert module.frequencies.dtype == torch.float32
    assert module.ids.dtype == torch.long


def test_a_report_of_a_small_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stages = Stages()
    report = export_model(source_of(models.Cacheless(layers=1)), tmp_path / "out", progress=stages)
    assert report.agreement.relative < 1e-5
    assert list(report.seconds)[:3] == ["probe", "trace", "convert"]
    assert report.manifest.signature.logits == "last"
    assert report.manifest.fusion["unfused"] == [
        "KV cache: forward takes neither a cache nor position_ids"
    ]
    assert len(report.manifest.ties) == 1
    with pytest.raises(BundleError):
        export_model(source_of(models.Cacheless(layers=1)), tmp_path / "out")


def operators(report: ExportReport) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(report.bundle.model_path).graph)


def table_copies(path: Path, rows: int, columns: int) -> int:
    """How many initializers of the file have the table's size."""
    graph = ir.load(path).graph
    return sum(
        1 for value in graph.initializers.values() if value.const_value.size == rows * columns
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", FUSED)
def test_architectures_match_torch_with_attention_fused(exported: Exported, kind: str) -> None:
    report = exported(kind)
    assert report.agreement.relative < 1e-5  # prompt, cached steps, left-padded batch of two
    found = operators(report)
    assert found["GroupQueryAttention"] == 2
    graph = ir.load(report.bundle.model_path).graph
    users = {node.op_type for value in graph.inputs[2:] for node, _ in value.uses()}
    assert users == {"GroupQueryAttention"}, "caches must not be touched outside of attention"
    rotary = report.manifest.fusion["operators"]["rotary inside attention"]
    assert rotary == ROTARY_LAYERS.get(kind, 2)
    assert report.manifest.signature.cache_in_place
    assert not report.manifest.fusion["unfused"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNFUSED)
def test_what_cannot_be_fused_stays_correct_and_is_reported(exported: Exported, kind: str) -> None:
    report = exported(kind)
    assert report.agreement.relative < 1e-5
    assert operators(report)["GroupQueryAttention"] == 0
    assert any("attention" in text for text in report.manifest.fusion["unfused"])
    assert not report.manifest.signature.cache_in_place


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*FUSED, *UNFUSED, *EITHER, "hand_written", "cacheless"])
def test_tied_matrix_is_one_initializer_with_two_uses(exported: Exported, kind: str) -> None:
    report = exported(kind)
    assert report.agreement.relative < 1e-5
    assert table_copies(report.bundle.model_path, models.VOCAB, 64) == 1
    (tie,) = report.manifest.ties
    assert {use.op_type for use in tie.uses} == {"Gather", "Gemm"}
    assert report.weights_bytes <= 1.01 * report.unique_parameter_bytes + 4096


@pytest.mark.slow
def test_projections_are_packed_and_norms_fused(exported: Exported) -> None:
    found = operators(exported("Qwen2"))
    assert found["MatMul"] == 2 * 4  # qkv, out, gate+up, down in each layer
    assert found["SkipSimplifiedLayerNormalization"] >= 3
    assert found["Cos"] <= 1
    assert found["Sin"] <= 1


@pytest.mark.slow
def test_module_of_ones_own_gets_a_cache(exported: Exported) -> None:
    report = exported("hand_written")
    assert operators(report)["GroupQueryAttention"] == 2
    assert len(report.manifest.signature.inputs) == 2 + 2 * 2


@pytest.mark.slow
def test_module_without_positions_runs_its_prefix_again(exported: Exported) -> None:
    report = exported("cacheless")
    assert [i.name for i in report.manifest.signature.inputs] == ["input_ids", "attention_mask"]
    assert any("KV cache" in text for text in report.manifest.fusion["unfused"])
    tokens = greedy(report.bundle.directory, [[3, 5, 8]], 4)
    assert tokens == torch_greedy(models.cacheless(), [3, 5, 8], 4)


@pytest.mark.slow
def test_heads_that_no_operator_takes_go_without_a_cache(exported: Exported) -> None:
    report = exported("odd_heads")
    assert report.agreement.relative < 1e-5
    assert not report.manifest.signature.cache_in_place
    assert any("head sizes 12" in text for text in report.manifest.fusion["unfused"])
    (tie,) = report.manifest.ties
    assert {use.op_type for use in tie.uses} == {"Gather", "Gemm"}


@pytest.mark.slow
def test_untied_model_is_exported_and_has_no_tie(exported: Exported) -> None:
    report = exported("untied")
    assert report.manifest.ties == []
    assert table_copies(report.bundle.model_path, models.VOCAB, 64) == 2


def greedy(path: Path, prompts: list[list[int]], count: int) -> Any:
    session = open_session(path, threads=1)
    steps = generate(session, prompts, max_new_tokens=count, stop_token_ids=frozenset())
    rows = np.stack([step.tokens for step in steps], axis=1).tolist()
    return rows[0] if len(rows) == 1 else rows


def torch_greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        tokens = torch.tensor([ids])
        with torch.no_grad():
            try:
                output = model(tokens)
            except TypeError:
                output = model(tokens, torch.arange(len(ids))[None])
        ids.append(int(logits_of(output)[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text", "GPT2", "Bloom"])
def test_padded_batch_gives_the_tokens_of_single_prompts(exported: Exported, kind: str) -> None:
    path = exported(kind).bundle.directory
    prompts = [[7, 9, 11, 13, 17, 19, 23], [3, 5], [29, 31, 37, 41]]
    together = greedy(path, prompts, 12)  # beyond the sliding window of 8
    assert together == [greedy(path, [prompt], 12) for prompt in prompts]
    model = models.transformers_model(kind)
    assert together[1] == torch_greedy(model, prompts[1], 12)


@pytest.mark.slow
def test_right_padded_batch_too(exported: Exported) -> None:
    path = exported("Llama").bundle.model_path
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    empty = [np.zeros((2, 2, 0, 16), np.float32)] * 4
    ids = np.array([[7, 9, 11, 13], [3, 5, 0, 0]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    right = session.run(["logits"], dict(zip(names, [ids, mask, *empty], strict=True)))[0]
    ids, mask = np.array([[7, 9, 11, 13], [0, 0, 3, 5]]), np.array([[1, 1, 1, 1], [0, 0, 1, 1]])
    left = session.run(["logits"], dict(zip(names, [ids, mask, *empty], strict=True)))[0]
    np.testing.assert_allclose(right, left, atol=1e-5)


@pytest.mark.slow
def test_logits_of_all_tokens(tmp_path: Path) -> None:
    model = models.transformers_model("Qwen2")
    report = export_model(source_of(model), tmp_path / "all", logits="all")
    session = ort.InferenceSession(
        str(report.bundle.model_path), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    ids, mask = np.array([[0, 0, 3, 5, 7]]), np.array([[0, 0, 1, 1, 1]])
    empty = [np.zeros((1, 2, 0, 16), np.float32)] * 4
    logits = session.run(["logits"], dict(zip(names, [ids, mask, *empty], strict=True)))[0]
    with torch.no_grad():
        expected = model(torch.tensor([[3, 5, 7]])).logits.numpy()
    np.testing.assert_allclose(logits[:, 2:], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_fp16_halves_the_file_and_keeps_the_tie(tmp_path: Path, kind: str) -> None:
    model = models.transformers_model(kind)
    report = export_model(source_of(model), tmp_path / "fp16", precision="fp16")
    assert report.agreement.relative < 2e-2
    assert report.weights_bytes <= 1.05 * report.unique_parameter_bytes
    assert table_copies(report.bundle.model_path, models.VOCAB, 64) == 1


def test_the_configuration_says_whether_the_head_is_tied(tmp_path: Path) -> None:
    model = models.transformers_model("Llama")
    source = Source("factory", "m", model, model.config, model.config.save_pretrained)
    for scale in (1, 2):
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * scale)
        report = export_model(source, tmp_path / "out", force=True)
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["tie_word_embeddings"] is (scale == 1)
        assert len(report.manifest.ties) == (scale == 1)


@pytest.mark.slow
def test_checkpoint_that_stored_the_table_twice_is_tied_again(tmp_path: Path) -> None:
    model = models.hand_written()
    model.head.weight = torch.nn.Parameter(model.tokens.weight.detach().clone())
    report = export_model(source_of(model), tmp_path / "twice")
    assert table_copies(report.bundle.model_path, models.VOCAB, 64) == 1
    assert len(report.manifest.ties) == 1


@pytest.mark.slow
def test_real_model(real_export: ExportReport) -> None:
    assert real_export.agreement.relative < 1e-5
    assert table_copies(real_export.bundle.model_path, 49152, 576) == 1
    assert real_export.weights_bytes <= 1.01 * real_export.unique_parameter_bytes
    found = operators(real_export)
    assert found["GroupQueryAttention"] == 30
    assert found["MatMul"] == 4 * 30
    assert real_export.manifest.fusion["unfused"] == []
    assert real_export.manifest.unique_parameters == 134_515_008


@pytest.mark.slow
def test_manifest_names_the_torch_parameters_of_a_tie(real_export: ExportReport) -> None:
    (tie,) = real_export.manifest.ties
    assert set(tie.parameters) == {"model.embed_tokens.weight", "lm_head.weight"}
    written = json.loads((real_export.bundle.directory / "edgetie.json").read_text())
    assert written["ties"][0]["shape"] == [49152, 576]
    for name, entry in written["files"].items():
        assert (real_export.bundle.directory / name).stat().st_size == entry["bytes"]
