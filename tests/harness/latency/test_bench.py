"""``bench``: protocol, sums and medians, its tables and picture, and its command."""

from __future__ import annotations

import io
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from naive_decoder import (
    VOCAB,
    table,
    write_decoder,
)
from rich.console import Console

from edgetie.bundle.manifest import Manifest, Signature, write_manifest
from edgetie.errors import BundleError, EdgetieError, ProviderError
from edgetie.harness.latency.bench import bench_model, run_worker
from edgetie.harness.latency.worker import Job
from edgetie.report.html import write_html
from edgetie.report.plots import plot_latency
from edgetie.report.tables import resource_table, speed_table
from edgetie.ties.groups import find_ties

CONTRACT = {
    "load_seconds", "prefill_ms", "prefill_tokens_per_second", "decode_tokens_per_second",
    "latency_ms", "rss_bytes", "anonymous_bytes", "peak_rss_bytes", "file_bytes", "threads",
    "provider", "nodes_per_provider", "latency_valid",
}  # fmt: skip


def write_bundle(directory: Path, weights: np.ndarray) -> Path:
    path = write_decoder(directory, weights)
    ties = find_ties(ir.load(path))
    signature = Signature([], [], logits="all", max_positions=64, vocab_size=len(weights))
    write_manifest(
        directory, Manifest({}, "causal-lm", "fp32", signature, ties, unique_parameters=6144)
    )
    return directory


def test_report_holds_medians_and_ratios(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tied", table())
    other = write_decoder(tmp_path / "other", table(1, 4 * VOCAB))
    report = bench_model(bundle, against=other, repeat=3, prompt_tokens=6, new_tokens=5, threads=1)
    for each in (report, report.against):
        assert each is not None
        assert len(each.runs) == each.repeat == 3
        loads = [run.load_seconds for run in each.runs]
        assert each.load_seconds == statistics.median(loads)
        assert each.spread["load_seconds"] == (min(loads), max(loads))
        speeds = [4000 / sum(run.step_ms) for run in each.runs]
        assert each.decode_tokens_per_second == pytest.approx(statistics.median(speeds))
        assert each.deviation["decode_tokens_per_second"] == pytest.approx(statistics.stdev(speeds))
        assert each.prefill_tokens_per_second == pytest.approx(6000 / each.prefill_ms)
        steps = sorted(step for run in each.runs for step in run.step_ms)
        assert each.latency_ms["p50"] == pytest.approx(statistics.median(steps))
        assert steps[0] < each.latency_ms["p90"] <= each.latency_ms["p99"] <= steps[-1]
    against = report.against
    assert against is not None
    files = ("model.onnx", "edgetie.json")
    assert report.file_bytes == sum((bundle / name).stat().st_size for name in files)
    assert against.file_bytes == other.stat().st_size
    assert report.ratios["file_bytes"] == report.file_bytes / against.file_bytes
    ratio = report.load_seconds / against.load_seconds
    assert report.ratios["load_seconds"] == pytest.approx(ratio)
    assert report.ties.intact
    assert (report.parameters, against.parameters) == (6144, None)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert set(data) >= CONTRACT
    assert set(data["against"]) >= CONTRACT
    assert "runs" not in data
    assert set(data["environment"]) == {"processor", "system", "edgetie", "onnxruntime", "date"}


def test_providers_that_are_not_there_are_never_replaced(tmp_path: Path) -> None:
    path = write_decoder(tmp_path, table())
    with pytest.raises(ProviderError, match="unknown"):
        bench_model(path, provider="abacus")
    with pytest.raises(ProviderError, match="not in the installed onnxruntime"):
        bench_model(path, provider="nnapi")


def test_errors_of_the_worker_keep_their_type(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such file"):
        run_worker(Job(str(tmp_path / "nothing"), "cpu", None, 4, 4))
    bundle = write_bundle(tmp_path / "b", table())
    with pytest.raises(EdgetieError, match="64"):
        bench_model(bundle, prompt_tokens=60, new_tokens=6, repeat=1)


def test_tables_and_picture(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tied", table())
    report = bench_model(
        bundle, against=bundle, repeat=1, prompt_tokens=3, new_tokens=3, timeline=True
    )
    speeds = speed_table(report)
    assert [row[5] for row in speeds.rows] == ["pp3", "tg3"] * 2
    assert all(len(row) == len(speeds.columns) for row in speeds.rows)
    resources = resource_table(report)
    assert all(len(row) == len(resources.columns) == 4 for row in resources.rows)
    assert ["ties", "intact", "intact", ""] in resources.rows
    assert ["files", *[f"{report.file_bytes / 1e6:.1f} MB"] * 2, "1.00"] in resources.rows
    plot_latency(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BundleError, match="cannot be written"):
        plot_latency(report, tmp_path / "missing" / "plot.png")
    before = (tmp_path / "plot.png").read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        for write in (plot_latency, lambda *given: write_html(given[0], [], given[1])):
            with pytest.raises(BundleError, match="no space left to write it, nothing was written"):
                write(report, tmp_path / "plot.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / "plot.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.png", "tied"]
    (tmp_path / "real").touch(0o600)
    (tmp_path / "link.svg").symlink_to("real")
    plot_latency(report, tmp_path / "link.svg")
    assert "<svg" in (tmp_path / "real").read_text("utf-8")
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["a$b_$c", "_under", "模型", "[red]x"])
def test_names_of_any_kind(tmp_path: Path, name: str, recwarn: pytest.WarningsRecorder) -> None:
    bundle = write_bundle(tmp_path / name, table())
    report = bench_model(bundle, repeat=1, prompt_tokens=[3, 4], new_tokens=3, timeline=True)
    write_html(report, [], tmp_path / "report.html")
    assert name in (tmp_path / "report.html").read_text("utf-8")
    assert not recwarn.list
    with io.StringIO() as drawn:
        Console(file=drawn, width=200, color_system=None).print(resource_table(report).rich())
        assert name in drawn.getvalue()


def test_two_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, two = (write_bundle(tmp_path / folder / "m", table()) for folder in ("v1", "v2"))
    report = bench_model(one, against=two, repeat=1, prompt_tokens=3, new_tokens=3)
    assert resource_table(report).columns[1:3] == [f">{one}", f">{two}"]
    assert {row[0].split()[0] for row in speed_table(report).rows} == {str(one), str(two)}


@pytest.mark.parametrize(
    "given",
    [
        {"repeat": 0},
        {"new_tokens": 1},
        {"prompt_tokens": []},
        {"prompt_tokens": [4, 0]},
        {"batch": 0},
        {"provider": []},
    ],
)
def test_numbers_out_of_range(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(EdgetieError, match=next(iter(given))):
        bench_model(write_bundle(tmp_path / "tied", table()), **given)


def test_modules_where_the_user_is_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "tied", table())
    (tmp_path / "random.py").write_text("raise SystemExit('my own random.py ran')")
    monkeypatch.chdir(tmp_path)
    assert run_worker(Job(str(bundle), "cpu", 1, 3, 3)).step_ms


@pytest.mark.slow
def test_command(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tied", table())

    def edgetie(*arguments: object) -> subprocess.CompletedProcess[str]:
        code = "from edgetie_cli.main import main; main()"
        command = [sys.executable, "-c", code, "bench", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    options = ("--prompt-tokens", 3, "--new-tokens", 3, "--repeat", 1, "--threads", 1)
    done = edgetie(bundle, *options, "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert set(data) >= CONTRACT
    assert (data["provider"], data["threads"], data["against"]) == ("cpu", 1, None)
    assert data["ties"]["intact"] is True

    done = edgetie(bundle, *options)
    assert done.returncode == 0
    assert "| prefill (TTFT)" in done.stdout
    done = edgetie(bundle, "--provider", "nnapi")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("edgetie: --provider nnapi: not in the installed onnxruntime")
    assert len(done.stderr.splitlines()) == 1
    assert edgetie(bundle, "--new-tokens", 1).returncode == 2
    other = write_bundle(tmp_path / "other", table(7))
    done = edgetie(bundle, *options, "--reference", other)
    assert done.returncode == 1
    assert "is above" in done.stderr
    assert edgetie(bundle, *options, "--reference", bundle, "--quiet").returncode == 0
