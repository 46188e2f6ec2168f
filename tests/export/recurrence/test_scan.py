"""Recurrent layers: a small recurrence as a Scan, and models whose states are scanned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from models import source_of
from runtime_models import byte_tokenizer
from torch import nn

from edgetie.deploy.deploy import deploy_model
from edgetie.errors import BundleError, UnfusableError
from edgetie.export.exporter import ExportReport, export_model
from edgetie.export.recurrence.scan import replace_states_by_scans
from edgetie.export.recurrence.token_unroll import TokenUnroll
from edgetie.harness.accuracy.references import BundleReference
from edgetie.npu.fix_shapes import fix_shapes
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session
from edgetie.sources.source import Source

_COMMON = {
    "vocab_size": models.VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_KINDS: dict[str, dict[str, Any]] = {
    "Mamba": {"state_size": 8},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "RecurrentGemma": {
        "num_hidden_layers": 3, "lru_width": 64, "head_dim": 16, "attention_window_size": 8,
    },
    "Zamba": {
        "num_hidden_layers": 2, "layers_block_type": ["hybrid", "hybrid"],
        "num_key_value_heads": 4, "attention_head_dim": 32, "attention_hidden_size": 128,
        "mamba_dt_rank": 8, "n_mamba_heads": 2,
    },
}  # fmt: skip
_STATES = {
    "Mamba": {f"{i}.{part}" for i in (0, 1) for part in ("conv_state", "recurrent_state")},
    "Lfm2": {"0.conv_state"},
    "RecurrentGemma": {
        f"{i}.{part}" for i in (0, 1) for part in ("conv1d_state", "recurrent_states")
    },
    "Zamba": {f"{i}.{part}" for i in (0, 1) for part in ("conv_state", "recurrent_state")},
}
_PROMPTS = [[7, 9, 11, 13, 17, 19, 23], [3, 5], [31]]


def make(kind: str) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**_COMMON, **_KINDS[kind]})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.05)
            elif parameter.shape[0] == models.VOCAB:
                parameter.mul_(4)
    return model


class Recurrence(nn.Module):
    """``state = decay * state + k vᵀ``, read by ``q``: a large state, small inputs and outputs."""

    def __init__(self, whole_sequence: bool = False) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor([0.5, 0.25, 0.75]))
        self.weight = nn.Parameter(torch.eye(4))
        self.whole_sequence = whole_sequence

    def forward(
        self, ids: torch.Tensor, k: torch.Tensor, past: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        unroll = TokenUnroll(ids)
        k = unroll.split(k @ self.weight + 0 * ids[..., None])[:, 0]  # batch and length of ids
        if self.whole_sequence:
            k = k.sum(0, keepdim=True)
        before = unroll.past_state(past)
        after = before * self.decay[:, None] + (k[:, :3, None] * k[:, None, :])
        output = (after * k[:, None, :]).sum(-1)
        return output.reshape(*ids.shape, 3), unroll.present_state(after, before, ids > 0)


def convert(module: nn.Module) -> ir.Model:
    arguments = torch.ones(2, 5, dtype=torch.long), torch.randn(2, 5, 4), torch.zeros(2, 3, 4)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic}, {0: dynamic}
    program = torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)
    converted = torch.onnx.export(
        program, dynamo=True, opset_version=23, verbose=False, optimize=False
    )
    return converted.model


def test_a_scan_computes_the_recurrence_token_by_token() -> None:
    torch.manual_seed(0)
    module = Recurrence()
    model = convert(module)
    assert replace_states_by_scans(model) == 1
    (scan,) = [node for node in model.graph if node.op_type == "Scan"]
    body = scan.attributes["body"].as_graph()
    assert not body.initializers
    assert tuple(body.inputs[0].shape[1:]) == (3, 4)
    widths = [int(np.prod(value.shape[1:])) for value in body.inputs[1:]]
    assert max(widths) <= 4  # the outer product is computed in the body
    assert all("edgetie" not in node.domain for node in model.graph)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    ids, k, state = np.array([[1, 1, 0, 1]] * 3), torch.randn(3, 4, 4), torch.randn(3, 3, 4)
    names = [value.name for value in session.get_inputs()]
    feeds = dict(zip(names, [ids, k.numpy(), state.numpy()], strict=True))
    output, present = session.run(None, feeds)
    for token in range(4):
        key = k[:, token]
        after = state * module.decay[:, None] + key[:, :3, None] * key[:, None, :]
        if ids[0, token]:
            expected = (after * key[:, None, :]).sum(-1).detach()
            np.testing.assert_allclose(output[:, token], expected, atol=1e-5)
            state = after
    np.testing.assert_allclose(present, state.detach(), atol=1e-5)


def test_a_graph_without_states_stays() -> None:
    model = convert(Plain())
    before = [node.name for node in model.graph]
    assert replace_states_by_scans(model) == 0
    assert [node.name for node in model.graph] == before


class Plain(nn.Module):
    def forward(
        self, ids: torch.Tensor, k: torch.Tensor, past: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return k + ids[..., None], past * 2


@pytest.mark.slow
def test_a_state_that_depends_on_the_whole_sequence_is_refused() -> None:
    model = convert(Recurrence(whole_sequence=True))
    with pytest.raises(UnfusableError, match="does not have a value for each token"):
        replace_states_by_scans(model)


Case = tuple[str, Any, ExportReport]


@pytest.fixture(scope="module", params=list(_KINDS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    kind = request.param
    model = make(kind)
    return kind, model, export_model(source_of(model, kind), tmp_path_factory.mktemp(kind) / "fp32")


@pytest.mark.slow
def test_states_are_inputs_and_outputs(case: Case) -> None:
    kind, _, report = case
    assert report.agreement.relative < 1e-5  # prompt, cached steps, a padded batch
    signature = report.manifest.signature
    inputs = {value.name: value.shape for value in signature.inputs}
    outputs = [value.name for value in signature.outputs]
    states = {name.removeprefix("past_key_values.") for name in inputs if "state" in name}
    assert states == _STATES[kind]
    for name in states:
        batch, *sizes = inputs[f"past_key_values.{name}"]
        assert batch == "batch_size"
        assert all(isinstance(size, int) for size in sizes)
        assert f"present.{name}" in outputs
    assert signature.cache_in_place == (kind != "Mamba")  # keys and values are, where there are any


@pytest.mark.slow
def test_weights_stay_outside_of_scans(case: Case) -> None:
    kind, _, report = case
    graph = ir.load(report.bundle.model_path).graph
    tables = [v for v in graph.initializers.values() if v.const_value.size == models.VOCAB * 64]
    assert len(tables) == 1
    scans = [node for node in graph if node.op_type == "Scan"]
    assert len(scans) == len(_STATES[kind])
    for scan in scans:
        body = scan.attributes["body"].as_graph()
        assert not body.initializers
        assert {node.op_type for node in body}.isdisjoint({"Gemm", "Conv", "Scan"})


@pytest.mark.slow
def test_tokens_are_those_of_transformers(case: Case) -> None:
    _, model, report = case
    session = open_session(report.bundle.directory, threads=1)
    steps = list(generate(session, _PROMPTS, max_new_tokens=6, stop_token_ids=frozenset()))
    for row, prompt in enumerate(_PROMPTS):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None
        )
        assert [int(step.tokens[row]) for step in steps] == expected[0, len(prompt) :].tolist()


@pytest.mark.slow
def test_prompts_in_parts_and_sequences_anew(case: Case) -> None:
    _, model, report = case
    ids = np.array([[7, 9, 11, 13, 17, 19, 23, 29, 31]])
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits[0].numpy()
    decoder = Decoder(open_session(report.bundle.directory, threads=1), 1, 16)
    for _ in range(2):
        np.testing.assert_allclose(decoder.prefill(ids[:, :4])[0], expected[3], atol=1e-4)
        np.testing.assert_allclose(decoder.prefill(ids[:, 4:8])[0], expected[7], atol=1e-4)
        np.testing.assert_allclose(decoder.step(ids[:, 8])[0], expected[8], atol=1e-4)
        decoder.reset()
    logits = BundleReference(report.bundle, threads=1).logits(ids)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.slow
def test_int8_keeps_states_and_ties(case: Case, tmp_path: Path) -> None:
    report = case[2]
    quantized = quantize_model(report.bundle.directory, tmp_path / "int8")
    manifest = quantized.bundle.manifest
    assert len(manifest.ties) == len(report.manifest.ties)
    assert manifest.signature.inputs == report.manifest.signature.inputs
    session = open_session(quantized.bundle, threads=1)
    assert len(list(generate(session, _PROMPTS, max_new_tokens=3, stop_token_ids=frozenset()))) == 3


@pytest.mark.slow
def test_deployment_and_fixed_shapes_are_for_attention_alone(tmp_path: Path) -> None:
    def save(target: Path) -> None:
        byte_tokenizer().save(str(target / "tokenizer.json"))

    for kind in ("Lfm2", "Mamba"):
        model = make(kind)
        export_model(Source("transformers", kind, model, model.config, save), tmp_path / kind)
    with pytest.raises(BundleError, match="caches of several kinds"):
        deploy_model(tmp_path / "Lfm2", "python", tmp_path / "app")
    with pytest.raises(BundleError, match="have a recurrent state"):
        fix_shapes(tmp_path / "Mamba", tmp_path / "fixed", prompt_tokens=1, context=32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Lfm2", "Mamba"]
