"""``bench``: protocol, sums and medians, and its command."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import image_models
import numpy as np
import onnx_ir as ir
import pytest
from image_cases import drawn
from naive_decoder import (
    VOCAB,
    table,
    write_decoder,
)

from edgetie.bundle.manifest import Manifest, Signature, write_manifest
from edgetie.errors import BundleError, EdgetieError, ImageError, ProviderError
from edgetie.harness.latency.bench import bench_model, run_worker
from edgetie.harness.latency.worker import Job
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
    report = bench_model(
        bundle, against=other, repeat=3, prompt_tokens=6, new_tokens=5, threads=1, timeline=True
    )
    for each in (report, report.against):
        assert each is not None
        assert len(each.runs) == each.repeat == 3
        assert each.sampled is not None
        assert each.sampled.timeline
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
    assert not {"runs", "sampled"} & set(data)
    assert set(data["environment"]) == {"processor", "system", "edgetie", "onnxruntime", "date"}


def test_a_sweep_is_a_report_for_each_length_and_batch(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tied", table())
    report = bench_model(
        bundle, against=bundle, repeat=1, prompt_tokens=[3, 4], batch=[1, 2], new_tokens=3
    )
    for each in (report, report.against):
        assert each is not None
        points = [(point.prompt_tokens, point.batch) for point in (each, *each.sweep)]
        assert points == [(3, 1), (3, 2), (4, 1), (4, 2)]
    assert report.ratios["file_bytes"] == 1


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


def test_an_image_is_read_before_the_prompt(tmp_path: Path) -> None:
    directory, photo = tmp_path / "bundle", tmp_path / "photo.jpg"
    image_models.export(image_models.build(image_models.llava()), directory)
    image_models.write_llava_processor(directory)
    drawn(60, 80).save(photo)
    lengths = {"prompt_tokens": 5, "new_tokens": 2, "repeat": 1}
    report = bench_model(directory, image=photo, **lengths)
    assert report.prompt_tokens == 4 + 5
    assert report.encode_ms is not None
    assert report.encode_ms > 0
    photo.write_bytes(photo.read_bytes()[:100])
    with pytest.raises(ImageError, match=r"photo\.jpg: a damaged image"):
        bench_model(directory, image=photo, **lengths)
    drawn(9, 9).save(photo)
    text = write_bundle(tmp_path / "text", table())
    with pytest.raises(BundleError, match="a bundle for causal-lm, which reads no images"):
        bench_model(text, image=photo, **lengths)
