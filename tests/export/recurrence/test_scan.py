"""Models with recurrent layers: their states are inputs and outputs, looped over the sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import pytest
import torch
from models import source_of
from runtime_models import byte_tokenizer

from edgetie.deploy.deploy import deploy_model
from edgetie.errors import BundleError
from edgetie.export.exporter import ExportReport, export_model
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


Case = tuple[str, Any, ExportReport]


@pytest.fixture(scope="module", params=list(_KINDS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    kind = request.param
    model = make(kind)
    return kind, model, export_model(source_of(model, kind), tmp_path_factory.mktemp(kind) / "fp32")


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


def test_weights_stay_outside_of_loops(case: Case) -> None:
    kind, _, report = case
    graph = ir.load(report.bundle.model_path).graph
    tables = [v for v in graph.initializers.values() if v.const_value.size == models.VOCAB * 64]
    assert len(tables) == 1
    loops = [node for node in graph if node.op_type == "Scan"]
    assert len(loops) == len(_STATES[kind])
    for loop in loops:
        body = loop.attributes["body"].as_graph()
        assert not body.initializers
        assert {node.op_type for node in body}.isdisjoint({"Gemm", "Conv", "Scan"})


def test_tokens_are_those_of_transformers(case: Case) -> None:
    _, model, report = case
    session = open_session(report.bundle.directory, threads=1)
    steps = list(generate(session, _PROMPTS, max_new_tokens=6, stop_token_ids=frozenset()))
    for row, prompt in enumerate(_PROMPTS):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None
        )
        assert [int(step.tokens[row]) for step in steps] == expected[0, len(prompt) :].tolist()


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


def test_int8_keeps_states_and_ties(case: Case, tmp_path: Path) -> None:
    report = case[2]
    quantized = quantize_model(report.bundle.directory, tmp_path / "int8")
    manifest = quantized.bundle.manifest
    assert len(manifest.ties) == len(report.manifest.ties)
    assert manifest.signature.inputs == report.manifest.signature.inputs
    session = open_session(quantized.bundle, threads=1)
    assert len(list(generate(session, _PROMPTS, max_new_tokens=3, stop_token_ids=frozenset()))) == 3


def test_starters_and_windows_are_for_attention_alone(tmp_path: Path) -> None:
    def save(target: Path) -> None:
        byte_tokenizer().save(str(target / "tokenizer.json"))

    for kind in ("Lfm2", "Mamba"):
        model = make(kind)
        export_model(Source("transformers", kind, model, model.config, save), tmp_path / kind)
    with pytest.raises(BundleError, match="caches of several kinds"):
        deploy_model(tmp_path / "Lfm2", "python", tmp_path / "app")
    with pytest.raises(BundleError, match="keep a state of one size"):
        fix_shapes(tmp_path / "Mamba", tmp_path / "fixed", prompt_tokens=1, context=32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Lfm2", "Mamba"]
