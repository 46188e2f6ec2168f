"""Limits on what int8 may cost: measured, kept by keeping some weights in floating point."""

from __future__ import annotations

import json
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto

from edgetie.bundle import open_bundle
from edgetie.errors import QuantizeError
from edgetie.export.exporter import export
from edgetie.harness.metrics import PredictionErrors
from edgetie.harness.proof import tie_status
from edgetie.harness.references import BundleReference
from edgetie.harness.thresholds import Thresholds
from edgetie.quantize import QuantizeReport, quantize
from edgetie.sources import Source
from edgetie_cli.main import cli


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sensitivity") / "fp32"
    model = models.transformers_model("Llama")
    export(Source("transformers", "Llama", model, model.config, lambda target: None), directory)
    return directory


@pytest.fixture(scope="module")
def plain(fp32: Path) -> QuantizeReport:
    """With a limit that holds by itself."""
    return quantize(fp32, fp32.parent / "plain", limits=Thresholds(max_kl=1.0))


def divergence(fp32: Path, int8: Path) -> float:
    """On tokens of this test's own."""
    tokens = np.random.default_rng(5).integers(0, models.VOCAB, (12, 100))
    reference, candidate, errors = BundleReference(fp32), BundleReference(int8), PredictionErrors()
    for window in tokens:
        both = (model.logits(window[None]) for model in (reference, candidate))
        errors.add(*both, np.full(len(window), -1))
    return errors.mean_kl_divergence


def floats(directory: Path) -> set[str]:
    graph = onnx.load(directory / "model.onnx", load_external_data=False).graph
    return {
        t.name
        for t in graph.initializer
        if t.data_type == TensorProto.FLOAT and len(t.dims) == 2 and "scales" not in t.name
    }


def test_nothing_is_kept_where_the_limit_holds(fp32: Path, plain: QuantizeReport) -> None:
    assert plain.costs == ()
    assert plain.kept == ()
    measured = plain.manifest.quantization["measured"]
    assert measured["kl"] == pytest.approx(divergence(fp32, plain.bundle.directory), rel=0.5)
    names = {path.name for path in plain.bundle.directory.iterdir()}
    assert not {"codes.data", "floats.data"} & names


def test_the_costliest_weights_are_kept_until_the_limit_holds(
    fp32: Path, plain: QuantizeReport, tmp_path: Path
) -> None:
    limit = plain.manifest.quantization["measured"]["kl"] * 0.6
    report = quantize(fp32, tmp_path / "int8", limits=Thresholds(max_kl=limit))
    kept = {cost.name for cost in report.costs if cost.kept}
    assert 0 < len(kept) < len(report.costs)
    assert report.manifest.quantization["measured"]["kl"] <= limit
    before = divergence(fp32, plain.bundle.directory)
    assert divergence(fp32, report.bundle.directory) < 0.8 * before
    assert kept <= floats(report.bundle.directory)
    assert [text.split(":")[0] for text in report.kept] == [
        cost.name for cost in report.costs if cost.kept
    ]
    worth = [cost.kl / cost.bytes for cost in report.costs]
    assert max(worth) == max(c.kl / c.bytes for c in report.costs if c.kept)
    added = sum(cost.bytes for cost in report.costs if cost.kept)
    assert report.bundle.file_bytes - plain.bundle.file_bytes == pytest.approx(added, abs=20_000)
    status = tie_status(open_bundle(report.bundle.directory))
    assert status.intact is True
    report.bundle.verify_files(hashes=True)


def test_a_limit_below_the_cost_of_the_table_is_refused(fp32: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="from the tied table alone, KL divergence"):
        quantize(fp32, tmp_path / "int8", limits=Thresholds(max_kl=1e-12))
    assert not (tmp_path / "int8").exists()


def test_limits_from_the_command_line(fp32: Path, plain: QuantizeReport, tmp_path: Path) -> None:
    limit = plain.manifest.quantization["measured"]["kl"] * 0.8
    arguments = ["quantize", str(fp32), "-o", str(tmp_path / "int8"), "--max-kl", f"{limit}"]
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert any(cost["kept"] for cost in found["costs"])
    assert found["quantization"]["measured"]["kl"] <= limit
    picture = tmp_path / "costs.png"
    text = CliRunner().invoke(cli, [*arguments, "--force", "--plot", str(picture)])
    assert "measured     KL" in text.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
