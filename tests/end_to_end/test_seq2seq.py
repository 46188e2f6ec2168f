"""Encoder–decoder models: one table for three uses in two files, and the same tokens as torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from seq2seq_models import (
    MODELS,
    make,
)

from edgetie.errors import BundleError
from edgetie.export.exporter import ExportReport, export_model
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.accuracy.references import TorchReference
from edgetie.harness.latency.bench import bench_model
from edgetie.harness.ties.inspect import inspect_model
from edgetie.quantize.quantizer import quantize_model
from edgetie.repair import tie_model
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session
from edgetie.sources.source import Source

pytestmark = pytest.mark.slow

PROMPTS = [[5, 6, 7, 8, 9, 10, 1], [20, 21, 1], [300, 31, 32, 33, 1]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportReport]:
    reports: dict[str, ExportReport] = {}

    def get(name: str) -> ExportReport:
        if name not in reports:
            model = make(name)
            source = Source("transformers", name, model, model.config, model.config.save_pretrained)
            reports[name] = export_model(source, tmp_path_factory.mktemp(name) / "fp32")
        return reports[name]

    return get


def ranges(path: Path, shape: list[int]) -> set[tuple[str, str, str]]:
    """File, offset and length of initializers of a shape in a data file, as ONNX tells them."""
    graph = onnx.load(path, load_external_data=False).graph
    return {
        tuple(
            {e.key: e.value for e in tensor.external_data}[k]
            for k in ("location", "offset", "length")
        )
        for tensor in graph.initializer
        if list(tensor.dims) == shape and tensor.external_data
    }  # type: ignore[misc]


def continuations(bundle: Path, count: int = 10) -> list[list[int]]:
    steps = generate(
        open_session(bundle), PROMPTS, max_new_tokens=count, stop_token_ids=frozenset()
    )
    return np.stack([step.tokens for step in steps]).T.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_one_table_for_both_files(exported: Callable[[str], ExportReport], name: str) -> None:
    report = exported(name)
    directory = report.bundle.directory
    assert report.manifest.task == "seq2seq-lm"
    assert report.agreement.relative < 1e-5
    assert min(report.agreement.cached, report.agreement.padded) > 0
    assert {p.name for p in directory.glob("*.onnx*")} == {
        "encoder_model.onnx", "decoder_model.onnx", "decoder_model_merged.onnx", "model.onnx.data",
    }  # fmt: skip
    names = ("encoder_model", "decoder_model", "decoder_model_merged")
    found = [ranges(directory / f"{name}.onnx", [512, 64]) for name in names]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 1
    table = next(group for group in report.manifest.ties if group.shape == (512, 64))
    assert len(table.parameters) >= 3
    assert [(use.op_type, use.file) for use in table.uses] == [
        ("Gather", "encoder_model.onnx"),
        ("Gather", "decoder_model.onnx"),
        ("Gemm", "decoder_model.onnx"),
    ]
    assert table.data is not None
    assert table.data["length"] == 512 * 64 * 4
    for file in names:
        onnx.checker.check_model(directory / f"{file}.onnx")


@pytest.mark.parametrize("name", MODELS)
def test_same_tokens_as_torch(exported: Callable[[str], ExportReport], name: str) -> None:
    """A batch of texts of different lengths, against torch one by one without a cache."""
    model = make(name)
    expected = []
    for prompt in PROMPTS:
        target = torch.tensor([[2]])
        with torch.no_grad():
            for _ in range(10):
                logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=target).logits
                target = torch.cat([target, logits[:, -1:].argmax(-1)], dim=1)
        expected.append(target[0, 1:].tolist())
    assert continuations(exported(name).bundle.directory) == expected
    assert len({tuple(row) for row in expected}) > 1


@pytest.mark.parametrize("name", ["T5", "M2M100"])
def test_int8_keeps_one_table(
    exported: Callable[[str], ExportReport], name: str, tmp_path: Path
) -> None:
    fp32 = exported(name)
    report = quantize_model(fp32.bundle.directory, tmp_path / "int8")
    sides = [tmp_path / "int8" / f"{side}_model.onnx" for side in ("encoder", "decoder")]
    found = [ranges(path, [512, 1, 64]) for path in sides]
    assert found[0] == found[1]
    assert len(found[0]) == 1
    scales = [ranges(path, [512, 1, 1]) for path in sides]
    assert scales[0] == scales[1]
    table = next(group for group in report.manifest.ties if group.shape[0] == 512)
    assert table.dtype == "UINT8"
    assert {(u.op_type, u.file[:7]) for u in table.uses} == {
        ("GatherBlockQuantized", "encoder"),
        ("GatherBlockQuantized", "decoder"),
        ("MatMulNBits", "decoder"),
    }
    data = tmp_path / "int8" / "model.onnx.data"
    assert data.stat().st_size < 0.35 * (fp32.bundle.directory / "model.onnx.data").stat().st_size
    kept = np.mean([
        a == b
        for row, other in zip(
            continuations(tmp_path / "int8"), continuations(fp32.bundle.directory), strict=True
        )
        for a, b in zip(row, other, strict=True)
    ])  # fmt: skip
    assert kept > 0.6
    accuracy = check_model(tmp_path / "int8", str(fp32.bundle.directory))
    assert accuracy.relative_error < 0.3  # one logit of many: rounding otherwise, 0.17 to 0.24
    assert accuracy.mean_kl_divergence < 4e-3


def test_inspect_counts_over_both_files(exported: Callable[[str], ExportReport]) -> None:
    found = inspect_model(exported("T5").bundle.directory)
    table = next(proof for proof in found.ties if proof.group.shape == (512, 64))
    assert (table.file, table.optimized) == (1, 1)
    parameters = exported("T5").unique_parameter_bytes
    assert parameters <= found.weight_bytes < 1.02 * parameters


def test_tie_runs_a_decoder_behind_an_encoder(
    exported: Callable[[str], ExportReport], tmp_path: Path
) -> None:
    directory = exported("T5").bundle.directory
    files = [directory / "encoder_model.onnx", directory / "decoder_model.onnx"]
    report = tie_model(files, tmp_path / "tied")
    assert [outputs.reason for outputs in report.outputs] == [None, None]
    assert {use.file for group in report.ties for use in group.uses} == {"decoder_model.onnx"}
    with pytest.raises(BundleError, match="holds several models"):
        tie_model(directory, tmp_path / "one.onnx")


def test_check_against_torch_and_bench(exported: Callable[[str], ExportReport]) -> None:
    bundle = exported("Bart").bundle.directory
    report = check_model(bundle, TorchReference(make("Bart"), "torch", [2]))
    assert report.passed
    assert report.relative_error < 1e-5
    speed = bench_model(bundle, prompt_tokens=8, new_tokens=4, repeat=1)
    assert speed.decode_tokens_per_second > 0
    assert speed.ties.intact


def test_a_decoder_without_a_start(tmp_path: Path) -> None:
    model = make("Bart")
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id = settings.bos_token_id = None
    source = Source("transformers", "Bart", model, model.config, lambda target: None)
    report = export_model(source, tmp_path / "bundle")
    with pytest.raises(BundleError, match="decoder_start_token_id"):
        next(generate(open_session(report.bundle), PROMPTS, max_new_tokens=2))


def test_mapped_bundles_have_a_merged_decoder_too(
    exported: Callable[[str], ExportReport], tmp_path: Path
) -> None:
    report = quantize_model(
        exported("Bart").bundle.directory, tmp_path / "out", scheme="int8-mapped"
    )
    assert (tmp_path / "out" / "decoder_model_merged.onnx").is_file()
    (table,) = (group for group in report.manifest.ties if group.shape[-1] == 512)
    assert sorted(use.op_type for use in table.uses) == ["Gather", "Gather", "MatMulInteger"]
