"""Every quantization scheme on exported models: close to float32, one embedding, ties recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import TensorProto, numpy_helper
from own_provider import needs_own_provider
from quantize_models import LEVELS, error, logits

from edgetie.bundle.bundle import open_bundle
from edgetie.harness.accuracy.references import BundleReference
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.quantize.mixed_precision.sensitivity import Precision
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import Session, open_session
from edgetie.targets import CALIBRATORS, QUANTIZE_SCHEMES, TARGETS
from edgetie.ties.groups import verify_ties
from edgetie_cli.main import cli

IDS = np.random.default_rng(4).integers(3, models.VOCAB, (1, 24))
TOLERANCE = {"int8-static": 0.08, "int4": 0.3, "int4-all": 0.4}
INT_SCHEMES = [name for name, row in QUANTIZE_SCHEMES.items() if not row.float16]
OPERATORS = {
    "int8": {"MatMulNBits", "GatherBlockQuantized"},
    "int8-mapped": {"MatMulInteger", "Gather"},
    "int8-plain": {"MatMulInteger", "Gather"},
    "int8-dynamic": {"MatMulInteger", "Gather"},
    "int8-static": {"DequantizeLinear", "Gather"},
    "int8-static16": {"DequantizeLinear", "Gather"},
    "int4": {"MatMulNBits", "GatherBlockQuantized"},
    "int4-all": {"MatMulNBits", "GatherBlockQuantized"},
}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scheme", INT_SCHEMES)
@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Gemma3Text"])
def test_logits_are_close_and_the_embedding_is_one(
    float_bundle: Any, tmp_path: Path, scheme: str, kind: str
) -> None:
    source = float_bundle(kind)
    report = quantize_model(source, tmp_path / "out", scheme=scheme)
    reference = logits(source / "model.onnx")
    exact = scheme == "int8-static"
    found = logits(report.bundle.model_path, exact=exact)
    assert error(reference, found) < TOLERANCE.get(scheme, 0.05)
    assert report.float_weights == ()
    manifest = report.manifest
    table = manifest.ties[0]
    assert {use.op_type for use in table.uses} == OPERATORS[scheme]
    assert (manifest.precision, manifest.weights_in_memory, manifest.quantization["scheme"]) == (
        QUANTIZE_SCHEMES[scheme].precision,
        QUANTIZE_SCHEMES[scheme].weights_in_memory,
        scheme,
    )
    verify_ties(ir.load(report.bundle.model_path), manifest.ties)
    # weights' bytes: at most one copy of any, of one byte each, and small scales
    graph = onnx.load(report.bundle.model_path, load_external_data=False).graph
    names = [
        tensor.name
        for tensor in graph.initializer
        if models.VOCAB in tensor.dims and len(tensor.dims) > 1 and np.prod(tensor.dims) > 4000
    ]
    assert names.count(table.name) == 1


@pytest.mark.parametrize(
    "scheme",
    ["int8-mapped", "int8-plain", "int8-dynamic", "int8-static", "int4"],
)
def test_every_optimization_level_agrees(float_bundle: Any, tmp_path: Path, scheme: str) -> None:
    report = quantize_model(float_bundle("Llama"), tmp_path / "out", scheme=scheme)
    first, *others = [logits(report.bundle.model_path, level) for level in LEVELS]
    for other in others:
        assert error(first, other) < 0.01


@pytest.mark.parametrize("scheme", INT_SCHEMES)
def test_a_batch_generates_what_single_prompts_do(
    float_bundle: Any, tmp_path: Path, scheme: str
) -> None:
    """Rounded activations of a prompt and of single tokens give the same tokens, nearly always."""
    report = quantize_model(float_bundle("Llama"), tmp_path / "out", scheme=scheme)
    session = open_session(report.bundle)
    prompts = np.random.default_rng(3).integers(3, models.VOCAB, (3, 9)).tolist()
    together = _greedy(session, prompts)
    alone = np.concatenate([_greedy(session, [prompt]) for prompt in prompts])
    same = np.mean(together == alone)
    assert same > 0.6


def _greedy(session: Session, prompts: list[list[int]]) -> np.ndarray:
    steps = generate(session, prompts, max_new_tokens=6, stop_token_ids=frozenset())
    return np.stack([step.tokens for step in steps], axis=1)


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4-all"])
def test_bits_are_those_of_the_scheme(float_bundle: Any, tmp_path: Path, scheme: str) -> None:
    report = quantize_model(float_bundle("Llama"), tmp_path / "out", scheme=scheme)
    graph = onnx.load(report.bundle.model_path, load_external_data=False).graph
    found: dict[str, set[tuple[int, int]]] = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            is_head = "layers" not in node.input[1]
            kind = "head" if is_head else node.input[1].split(".")[-2].removesuffix("_proj")
            attributes = {each.name: each.i for each in node.attribute}
            found.setdefault(kind, set()).add((attributes["bits"], attributes["block_size"]))
    low = {(8, 64)} if scheme == "int8" else {(4, 32)}
    high = {(4, 32)} if scheme == "int4-all" else {(8, 64)}
    assert found == {"head": high, "v": high, "down": high, "o": low, "up": low}


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_calibrators(float_bundle: Any, tmp_path: Path, calibrator: str) -> None:
    report = quantize_model(
        float_bundle("Llama"), tmp_path / "out", target="openvino", calibrator=calibrator
    )
    assert (
        error(logits(float_bundle("Llama") / "model.onnx"), logits(report.bundle.model_path)) < 0.2
    )
    graph = onnx.load(report.bundle.model_path, load_external_data=False).graph
    scales = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.name.endswith("input.scale")
    }
    assert len(scales) == 4 * 2 + 1  # of each layer, and of the head
    assert all(scale > 0 for scale in scales.values())


def test_limits_hold_for_schemes_without_higher_precision(
    float_bundle: Any, tmp_path: Path
) -> None:
    found = quantize_model(
        float_bundle("Llama"), tmp_path / "a", scheme="int8-static", limits=Thresholds(max_kl=1.0)
    ).manifest.quantization["measured"]["kl"]
    report = quantize_model(
        float_bundle("Llama"),
        tmp_path / "b",
        scheme="int8-static",
        limits=Thresholds(max_kl=found / 2),
    )
    assert report.manifest.quantization["measured"]["kl"] <= found / 2
    kept = [cost.name for cost in report.costs if cost.precision is Precision.FLOAT]
    assert 0 < len(kept) < len(report.costs)
    graph = onnx.load(report.bundle.model_path, load_external_data=False).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {kinds[name] for name in kept} == {TensorProto.FLOAT}
    report.bundle.verify_files(hashes=True)


@pytest.mark.parametrize(
    ("scheme", "provider"),
    [("int8-mapped", "cpu"), pytest.param("int8", "edgetie", marks=needs_own_provider)],
)
def test_mapped_session_is_ready_without_optimizing(
    float_bundle: Any, tmp_path: Path, scheme: str, provider: str
) -> None:
    """Nothing is left to fold: the graph runs as it is written."""
    report = quantize_model(float_bundle("Llama"), tmp_path / "out", scheme=scheme)
    graph = onnx.load(report.bundle.model_path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    foldable = [n.op_type for n in graph.node if n.input and constants.issuperset(n.input)]
    assert foldable == []
    session = open_session(report.bundle, provider=provider)
    assert sum(session.nodes_per_provider.values()) == len(graph.node)


def test_from_the_command_line(float_bundle: Any, tmp_path: Path) -> None:
    listed = CliRunner().invoke(cli, ["quantize", "--list-targets"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in [*TARGETS, *QUANTIZE_SCHEMES])
    tables = json.loads(CliRunner().invoke(cli, ["quantize", "--list-targets", "--json"]).stdout)
    assert (list(tables["targets"]), list(tables["schemes"])) == ([*TARGETS], [*QUANTIZE_SCHEMES])
    source, out = str(float_bundle("Llama")), str(tmp_path / "out")
    done = CliRunner().invoke(
        cli, ["quantize", source, "-o", out, "--target", "mobile-cpu", "--json"]
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["quantization"]["scheme"] == "int8"


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Gemma3Text"])
@pytest.mark.parametrize("scheme", ["fp16", "int8-fp16"])
def test_float16_keeps_the_tie(float_bundle: Any, tmp_path: Path, kind: str, scheme: str) -> None:
    report = quantize_model(float_bundle(kind), tmp_path / "out", scheme=scheme)
    reference = BundleReference(float_bundle(kind)).logits(IDS)
    found = BundleReference(report.bundle).logits(IDS)
    assert error(reference, found) < (0.01 if scheme == "fp16" else 0.05)
    assert [group.name for group in report.manifest.ties][:1] == [
        group.name for group in open_bundle(float_bundle(kind)).manifest.ties
    ][:1]  # type: ignore[union-attr]
    graph = onnx.load(report.bundle.model_path, load_external_data=False).graph
    kinds = [t.data_type for t in graph.initializer if np.prod(t.dims) >= 1024]
    assert TensorProto.FLOAT not in kinds
    logits_type = next(o for o in graph.output if o.name == "logits").type.tensor_type.elem_type
    assert logits_type == TensorProto.FLOAT16


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text"])
@pytest.mark.parametrize("scheme", ["int8", "int8-fp16"])
def test_logits_with_an_int8_cache_are_close(
    float_bundle: Any, tmp_path: Path, kind: str, scheme: str
) -> None:
    report = quantize_model(float_bundle(kind), tmp_path / "out", scheme=scheme, int8_kv_cache=True)
    session = open_session(report.bundle)
    assert session.cache_dtype == "int8"
    assert session.cache_in_place
    cached = report.manifest.signature.cache
    assert {entry.dtype for entry in cached} == {"int8"}
    reference = BundleReference(float_bundle(kind)).logits(IDS)
    assert error(reference, BundleReference(report.bundle).logits(IDS)) < 0.06
    # what was cached is read again: a prompt, then single tokens, against all at once
    decoder = Decoder(session, 1, 30)
    one = [decoder.prefill(IDS[:, :12])[0]]
    one += [decoder.step(IDS[:, index])[0] for index in range(12, 20)]
    assert error(reference[11:20], np.stack(one).reshape(9, -1)) < 0.06
