"""Every quantization scheme: close to fp32, one table in the file, ties known; and the tables that
name schemes and targets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from quantize_models import LEVELS, error, logits, plain

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import EdgetieError, QuantizeError
from edgetie.harness.accuracy.references import BundleReference
from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.passes.fold_constants import FoldConstants
from edgetie.passes.run import run_passes
from edgetie.quantize.formats.scheme_formats import weight_formats
from edgetie.quantize.mixed_precision.sensitivity import Precision
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import Session, open_session
from edgetie.targets import CALIBRATORS, SCHEMES, TARGETS, find_scheme
from edgetie.ties.groups import verify_ties
from edgetie_cli.main import cli

IDS = np.random.default_rng(4).integers(3, models.VOCAB, (1, 24))
TOLERANCE = {"int8-static": 0.08, "int4": 0.3, "int4-all": 0.4}
TOGGLE_INPUT = [name for name, row in SCHEMES.items() if not row.float16]
OPERATORS = {
    "int8": {"MatMulNBits", "GatherBlockQuantized"},
    "int8-aliased": {"MatMulNBits", "GatherBlockQuantized"},
    "int8-mapped": {"MatMulInteger", "Gather"},
    "int8-mapped-arm": {"MatMulInteger", "Gather"},
    "int8-mapped-table": {"MatMulInteger", "Gather"},
    "int8-plain": {"MatMulInteger", "Gather"},
    "int8-dynamic": {"MatMulInteger", "Gather"},
    "int8-static": {"DequantizeLinear", "Gather"},
    "int8-static16": {"DequantizeLinear", "Gather"},
    "int4": {"MatMulNBits", "GatherBlockQuantized"},
    "int4-all": {"MatMulNBits", "GatherBlockQuantized"},
}


@pytest.mark.parametrize("scheme", TOGGLE_INPUT)
@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Gemma3Text"])
def test_close_to_fp32_with_one_table(
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
        SCHEMES[scheme].precision,
        SCHEMES[scheme].weights_in_memory,
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
    lookups = [name for name in names if name.endswith("lookup") and "scales" not in name]
    assert len(lookups) == (scheme == "int8-aliased")
    if scheme == "int8-aliased":  # over the same bytes
        places = {t.name: t.external_data[1].value for t in graph.initializer if t.name in names}
        assert places[lookups[0]] == places[table.name]


@pytest.mark.parametrize(
    "scheme",
    ["int8-mapped", "int8-mapped-arm", "int8-plain", "int8-dynamic", "int8-static", "int4"],
)
def test_every_optimization_level_agrees(float_bundle: Any, tmp_path: Path, scheme: str) -> None:
    report = quantize_model(float_bundle("Llama"), tmp_path / "out", scheme=scheme)
    first, *others = [logits(report.bundle.model_path, level) for level in LEVELS]
    for other in others:
        assert error(first, other) < 0.01


@pytest.mark.parametrize("scheme", TOGGLE_INPUT)
def test_generates_the_same_step_by_step(float_bundle: Any, tmp_path: Path, scheme: str) -> None:
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


@pytest.mark.parametrize("scheme", TOGGLE_INPUT)
@pytest.mark.parametrize("width", [64, 70])
def test_plain_file_of_any_width(tmp_path: Path, scheme: str, width: int) -> None:
    path = plain(tmp_path, width=width)
    report = quantize_model(path, tmp_path / "out", scheme=scheme)
    bound = TOLERANCE.get(scheme, 0.03)
    assert error(logits(path), logits(report.bundle.model_path)) < bound
    assert [group.name for group in report.manifest.ties] == ["table"]


@pytest.mark.parametrize("scheme", TOGGLE_INPUT)
def test_nan_is_named(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(QuantizeError, match="middle: NaN or infinity"):
        quantize_model(plain(tmp_path, bad=True), tmp_path / "out", scheme=scheme)
    assert not (tmp_path / "out").exists()


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


def test_limits_hold_for_other_schemes(float_bundle: Any, tmp_path: Path) -> None:
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


def test_mapped_session_is_ready_without_optimizing(float_bundle: Any, tmp_path: Path) -> None:
    """Nothing is left to fold: the graph runs as it is written."""
    report = quantize_model(float_bundle("Llama"), tmp_path / "out", scheme="int8-mapped")
    graph = onnx.load(report.bundle.model_path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    foldable = [n.op_type for n in graph.node if n.input and constants.issuperset(n.input)]
    assert foldable == []
    session = open_session(report.bundle)
    assert sum(session.nodes_per_provider.values()) == len(graph.node)


def test_fold_keeps_weights_and_what_depends_on_inputs() -> None:
    values = {
        "w": np.ones((64, 64), np.float32),
        "start": np.array(0, np.int64),
        "end": np.array(4096, np.int64),
        "step": np.array(1, np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"]),
        helper.make_node("Range", ["start", "end", "step"], ["numbers"]),
        helper.make_node("Cast", ["numbers"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Sin", ["floats"], ["waves"]),
        helper.make_node("MatMul", ["x", "turned"], ["product"]),
        helper.make_node("Gather", ["waves", "i"], ["wave"]),
        helper.make_node("Add", ["product", "wave"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "fold",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64]),
            helper.make_tensor_value_info("i", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 64])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    run_passes(model, [], [FoldConstants()])
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul", "Gather", "Add"]
    table = next(n for n in model.graph if n.op_type == "Gather").inputs[0]
    assert table is not None
    assert table.const_value is not None
    np.testing.assert_allclose(table.const_value.numpy(), np.sin(np.arange(4096)), atol=1e-4)


def test_an_opset_without_the_operators_is_refused(tmp_path: Path) -> None:
    path = plain(tmp_path)
    model = onnx.load(path)
    model.opset_import[0].version = 17
    onnx.save(model, path)
    with pytest.raises(QuantizeError, match=r"opset is 17 .* need 18"):
        quantize_model(path, tmp_path / "out", scheme="int8-mapped")
    assert not (tmp_path / "out").exists()
    quantize_model(path, tmp_path / "out")


def test_every_target_has_a_scheme_and_every_scheme_forms() -> None:
    assert {target.scheme for target in TARGETS.values()} <= SCHEMES.keys()
    assert [name for name, row in SCHEMES.items() if weight_formats(row) is None] == ["fp16"]
    assert find_scheme("web").name == "int8-plain"
    assert find_scheme("web", scheme="int4").name == "int4"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"target": "moon"}, "target='moon': unknown; one of cpu"),
        ({"scheme": "int3"}, "scheme='int3': unknown; one of int8"),
        ({"calibrator": "none"}, "calibrator='none': not one of minmax"),
    ],
)
def test_what_there_is_not(tmp_path: Path, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(EdgetieError, match=words):
        quantize_model(plain(tmp_path), tmp_path / "out", **asked)


def test_from_the_command_line(float_bundle: Any, tmp_path: Path) -> None:
    listed = CliRunner().invoke(cli, ["quantize", "--list-targets"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in [*TARGETS, *SCHEMES])
    tables = json.loads(CliRunner().invoke(cli, ["quantize", "--list-targets", "--json"]).stdout)
    assert (list(tables["targets"]), list(tables["schemes"])) == ([*TARGETS], [*SCHEMES])
    source, out = str(float_bundle("Llama")), str(tmp_path / "out")
    done = CliRunner().invoke(
        cli, ["quantize", source, "-o", out, "--target", "mobile-cpu", "--json"]
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["quantization"]["scheme"] == "int8-mapped-arm"


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Gemma3Text"])
@pytest.mark.parametrize("scheme", ["fp16", "int8-fp16"])
def test_half_precision_keeps_the_tie(
    float_bundle: Any, tmp_path: Path, kind: str, scheme: str
) -> None:
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


def test_a_weight_too_large_for_half_precision_is_named(tmp_path: Path) -> None:
    path = plain(tmp_path)
    model = onnx.load(path)
    middle = next(t for t in model.graph.initializer if t.name == "middle")
    middle.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(middle) * 1e6, "middle"))
    onnx.save(model, path)
    with pytest.raises(QuantizeError, match="middle: a value is too large"):
        quantize_model(path, tmp_path / "out", scheme="fp16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text"])
@pytest.mark.parametrize("scheme", ["int8", "int8-fp16"])
def test_cache_of_8_bits(float_bundle: Any, tmp_path: Path, kind: str, scheme: str) -> None:
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


def test_a_cache_that_no_operator_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="no GroupQueryAttention"):
        quantize_model(plain(tmp_path), tmp_path / "out", int8_kv_cache=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("exact", ["0", "1"])
@pytest.mark.parametrize("shape", [(5, 96), (2, 3, 96), (2, 2, 1, 96)])
def test_mapped_products_of_any_rank(tmp_path: Path, shape: tuple[int, ...], exact: str) -> None:
    """A matrix so large that both parts of activations have a product of their own."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(96, 30_000)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape[:-1], 30_000])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    report = quantize_model(tmp_path / "m.onnx", tmp_path / "out", scheme="int8-mapped")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", exact)
    session = onnxruntime.InferenceSession(report.bundle.model_path, options)
    x = rng.normal(size=shape).astype(np.float32)
    x[0] = 0
    (y,) = session.run(None, {"x": x})
    assert y.shape == (*shape[:-1], 30_000)
    assert np.linalg.norm(y - x @ weight) < 0.01 * np.linalg.norm(x @ weight)
    assert not y[0].any()
