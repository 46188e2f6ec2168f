"""Quantized GGUF files: the bundle holds their integers and scales, value by value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime as ort
import pytest
import torch
from gguf_files import VOCAB, write_gguf

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import ExportError, QuantizeError
from edgetie.export.exporter import ExportReport, export_model
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.ties.inspect import inspect_model
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session
from edgetie.sources.load import load_source
from edgetie.ties.groups import JOINT

MIXES = {
    "legacy": ("Q4_1", {"attn_q": "Q4_0", "attn_k": "Q4_0", "attn_v": "Q5_1", "ffn_gate": "Q5_0",
                        "ffn_up": "Q8_0", "ffn_down": "IQ4_NL", "attn_output": "Q4_1"}),
    "k": ("Q6_K", {"attn_q": "Q4_K", "attn_k": "Q4_K", "attn_v": "Q6_K", "ffn_gate": "Q5_K",
                   "ffn_up": "Q2_K", "ffn_down": "Q3_K", "attn_output": "IQ4_XS"}),
    "one": ("Q8_0", dict.fromkeys(
        ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down", "attn_output"), "Q4_1")),
}  # fmt: skip
"""Types of the tied table and of the other weights."""

IDS = np.random.default_rng(5).integers(0, VOCAB, (1, 24))


@pytest.fixture(scope="module", params=MIXES)
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    table, others = MIXES[request.param]

    def types(name: str) -> str:
        return table if name == "token_embd" else others[name.split(".")[-1]]

    directory = tmp_path_factory.mktemp(request.param)
    path = write_gguf(directory / "model.gguf", tables=None, types=types, width=256)
    return export_model(str(path), directory / "bundle")


def gguf_of(report: ExportReport) -> str:
    return str(report.bundle.directory.parent / "model.gguf")


def stored_weights(bundle: Path) -> dict[str, np.ndarray]:
    """Dequantize the weights of a bundle from its initializers, by parameter."""
    model = onnx.load(bundle / "model.onnx")
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    weights = {}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        settings = {each.name: each.i for each in node.attribute}
        values, scales, zeros = (arrays[name] for name in node.input[1:4])
        rows = settings["N"]
        if settings["bits"] == 4:
            values, zeros = (np.stack([x & 15, x >> 4], axis=-1) for x in (values, zeros))
        values = values.reshape(rows, -1, settings["block_size"]).astype(np.float32)
        blocks = values.shape[1]
        values -= zeros.reshape(rows, -1)[:, :blocks, None]
        values *= scales.reshape(rows, blocks, 1)
        offsets = arrays.get(node.input[2].replace("scales", "offsets"))
        if offsets is not None:
            values += offsets[..., None]
        weights[node.input[1]] = values.reshape(rows, -1)
    return weights


def test_every_value_is_that_of_the_file(kept: ExportReport) -> None:
    source = load_source(gguf_of(kept))
    parameters = {name: p.detach().numpy() for name, p in source.module.named_parameters()}
    compared = 0
    for name, weight in stored_weights(kept.bundle.directory).items():
        merged = []
        for part in name.split(JOINT):
            own = part.removeprefix("model.").replace("lm_head", "model.embed_tokens")
            merged.append(parameters[own])
        np.testing.assert_array_equal(weight, np.concatenate(merged), err_msg=name)
        compared += len(merged)
    assert compared == len(source.quantized) == 15


def test_logits_are_torchs(kept: ExportReport, tmp_path: Path) -> None:
    """To 1e-4 with activations in float32, to 5e-3 with edgetie's kernels: weights are random."""
    module = load_source(gguf_of(kept), dequantize=True).module
    with torch.no_grad():
        expected = module(torch.from_numpy(IDS)).logits[0, -1].numpy()
    largest = np.abs(expected).max()
    model = onnx.load(kept.bundle.model_path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(model, tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    for value in session.get_inputs():
        if value.name not in feeds:
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    assert np.abs(session.run(["logits"], feeds)[0][0, -1] - expected).max() < 1e-4 * largest
    assert kept.agreement.relative < 5e-3


def test_the_tied_table_is_one_initializer_in_the_type_of_the_file(kept: ExportReport) -> None:
    tie = kept.manifest.ties[0]
    assert {use.op_type for use in tie.uses} == {"GatherBlockQuantized", "MatMulNBits"}
    assert tie.dtype == "UINT8"
    graph = onnx.load(kept.bundle.model_path, load_external_data=False).graph
    tables = [
        each.name
        for each in graph.initializer
        if each.data_type == onnx.TensorProto.UINT8 and np.prod(each.dims) >= VOCAB * 256 // 2
    ]
    assert [name for name in tables if "embed" in name or "head" in name] == [tie.name]
    copies = inspect_model(kept.bundle.directory).ties[0]
    assert (copies.file, copies.optimized) == (1, 1)


def test_every_node_of_a_layer_is_edgeties(kept: ExportReport) -> None:
    session = open_session(kept.bundle.directory, provider="edgetie")
    assert "MatMulNBits" not in session.fallback_nodes
    assert session.fallback_nodes.get("MatMul", 0) <= ("Q4_1" in str(kept.manifest.quantization))


def test_what_was_kept_is_recorded_and_runs(kept: ExportReport) -> None:
    quantization = kept.manifest.quantization
    assert quantization["scheme"] == "checkpoint"
    assert sum(quantization["types"].values()) == 15
    assert kept.manifest.precision in ("int4", "int8")
    steps = list(generate(open_session(kept.bundle.directory), IDS.tolist(), max_new_tokens=4))
    assert len(steps) == 4
    report = check_model(kept.bundle.directory, gguf_of(kept), max_tokens=64)
    assert report.passed, report.failures


def test_a_kept_bundle_is_not_quantized_again(kept: ExportReport, tmp_path: Path) -> None:
    with pytest.raises(
        QuantizeError, match=r"is quantized already .*; quantize its checkpoint, exported deq"
    ):
        quantize_model(kept.bundle.directory, tmp_path / "int8")


def test_dequantized_weights_are_floats(kept: ExportReport, tmp_path: Path) -> None:
    report = export_model(gguf_of(kept), tmp_path / "fp32", dequantize=True)
    assert report.manifest.precision == "fp32"
    assert not report.manifest.quantization
    assert report.agreement.relative < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "web"}, "target web does not run blocks of weights.*dequantize"),
        ({"precision": "fp16"}, "fp16 is a precision of weights that are not.*dequantize"),
    ],
)
def test_other_targets_and_precisions_are_refused(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    path = write_gguf(tmp_path / "model.gguf", tables=None, types=lambda name: "Q8_0")
    with pytest.raises(ExportError, match=message):
        export_model(str(path), tmp_path / "bundle", **options)
    assert not (tmp_path / "bundle").exists()


def test_the_real_file_is_kept(real_gguf: Path, real_bundle: Path, tmp_path: Path) -> None:
    report = export_model(str(real_gguf), tmp_path / "kept")
    floats = onnx.load(real_bundle / "model.onnx")
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in floats.graph.initializer}
    for name, weight in stored_weights(report.bundle.directory).items():
        expected = arrays[name]
        expected = expected if "lm_head" in name else expected.T
        np.testing.assert_array_equal(weight, expected, err_msg=name)
    assert open_bundle(report.bundle.directory).file_bytes < 1.25 * real_gguf.stat().st_size
    assert report.agreement.relative < 1e-3
