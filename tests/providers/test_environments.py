"""Providers: which can be had, those that run in environments of their own, and how they fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import (
    MAIN,
    edgetie,
    refused,
)

from edgetie.errors import ProviderError
from edgetie.export.exporter import ExportReport
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.accuracy.metrics import Interval, median_interval
from edgetie.harness.latency.bench import bench_model
from edgetie.providers.availability import list_availability
from edgetie.providers.environments import (
    Environment,
    environment_directory,
    install_environment,
)
from edgetie.providers.registry import PROVIDERS
from edgetie.report.html import write_html
from edgetie.runtime.session import open_session
from edgetie.targets import TARGETS

SMALL = {"new_tokens": 4, "repeat": 2, "threads": 1}


@pytest.fixture(scope="session")
def openvino() -> Environment:
    """OpenVINO's own environment, made once."""
    if sys.platform != "linux":
        pytest.skip("tried on Linux")
    file = environment_directory("openvino") / "environment.json"
    if file.is_file():
        found = json.loads(file.read_text("utf-8"))
        return Environment(tuple(found["command"]), found["variables"])
    return install_environment("openvino")


def test_every_provider_is_listed_and_those_that_start_are_tried() -> None:
    found = {each.row.name: each for each in list_availability()}
    assert found.keys() == PROVIDERS.keys()
    assert found["cpu"].where == "here"
    assert not found["wasm"].where
    assert "edgetie deploy" in found["wasm"].problem
    for each in found.values():
        assert each.row.target in TARGETS
        assert bool(each.where) != bool(each.problem)


def test_another_environment_is_compared_with_this_one(
    exported: Callable[[str], ExportReport], openvino: Environment, tmp_path: Path
) -> None:
    bundle = exported("Llama").bundle.directory
    accuracy = check_model(bundle, str(bundle), provider="openvino", max_tokens=64)
    assert accuracy.relative_error < 1e-4
    assert accuracy.greedy_agreement == 1.0
    assert accuracy.nodes_per_provider["OpenVINOExecutionProvider"] > 10
    assert accuracy.fallback_nodes["GroupQueryAttention"] == 2

    report = bench_model(
        bundle,
        provider=["cpu", "openvino"],
        prompt_tokens=[8, 16],
        batch=[1, 2],
        timeline=True,
        **SMALL,  # type: ignore[arg-type]
    )
    (there,) = report.others
    assert (report.provider, there.provider) == ("cpu", "openvino")
    assert not report.fallback_nodes
    assert there.fallback_nodes == accuracy.fallback_nodes
    points = [(point.prompt_tokens, point.batch) for point in there.sweep]
    assert points == [(8, 2), (16, 1), (16, 2)]
    page = tmp_path / "report.html"
    write_html(report, [accuracy], page)
    text = page.read_text("utf-8")
    assert text.count("data:image/png;base64,") == 2
    assert "openvino leaves" in text
    assert "://" not in text  # a page that asks nothing of the network; no such signs in base64


def test_strict_takes_no_other_provider(
    exported: Callable[[str], ExportReport], openvino: Environment
) -> None:
    bundle = exported("Llama").bundle.directory
    with pytest.raises(ProviderError, match=r"strict: .*openvino leaves .*GroupQueryAttention 2"):
        check_model(bundle, str(bundle), provider="openvino", strict=True)
    assert not open_session(bundle, strict=True).fallback_nodes


def test_a_library_that_does_not_load_is_one_line_and_no_run_on_the_cpu(
    exported: Callable[[str], ExportReport], openvino: Environment, tmp_path: Path
) -> None:
    """A real installation, one library of it overwritten."""
    found = subprocess.run(
        [*openvino.command, "-c", "import onnxruntime; print(onnxruntime.__path__[0])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    whole = Path(found.stdout.strip())
    broken = tmp_path / "broken" / "onnxruntime"
    (broken / "capi").mkdir(parents=True)
    for folder, target in ((whole, broken), (whole / "capi", broken / "capi")):
        for file in folder.iterdir():
            if file.name == "libonnxruntime_providers_openvino.so":
                (target / file.name).write_text("no library", "utf-8")
            elif file.name != "capi":
                (target / file.name).symlink_to(file)
    cache = tmp_path / "cache" / "edgetie" / "environments" / "openvino"
    cache.mkdir(parents=True)
    variables = {"PYTHONPATH": str(broken.parent)}
    text = json.dumps({"command": openvino.command, "variables": variables})
    (cache / "environment.json").write_text(text, "utf-8")
    bundle = exported("Llama").bundle.directory
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "bench", str(bundle), "--provider", "openvino", "--quiet"],
        env={"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    refused(done, "--provider openvino", "did not start")


def test_absent_providers_are_refused(
    exported: Callable[[str], ExportReport], tmp_path: Path
) -> None:
    bundle = exported("Llama").bundle.directory
    for name in ("coreml", "wasm", "gpu"):
        refused(edgetie("bench", bundle, "--provider", name, cwd=tmp_path), f"--provider {name}")
    refused(edgetie("providers", "--install", "nnapi", cwd=tmp_path), "--install nnapi")


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"command": ["/nowhere/python"], "variables": {}}'],
    ids=["empty", "keys", "gone"],
)
def test_a_broken_environment_is_to_be_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """And takes no other provider with it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "edgetie" / "environments" / "openvino"
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(text, "utf-8")
    found = {each.row.name: each for each in list_availability()}
    assert "is broken" in found["openvino"].problem
    assert found["openvino"].problem.endswith("edgetie providers installs it again")
    assert found["cpu"].where == "here"


def test_interval_of_a_median() -> None:
    assert median_interval([3, 1, 2, 5, 4]) == Interval(1, 5, 0.9375)
    assert median_interval(range(6)) == Interval(0, 5, 0.96875)
    found = median_interval(range(20))  # the 6th and the 15th, by the binomial table
    assert (found.low, found.high) == (5, 14)
    assert found.level == pytest.approx(0.9586, abs=1e-4)
    assert median_interval([7.0]) == Interval(7.0, 7.0, 0.0)
    for count in (64, 65, 1030):
        found = median_interval(range(count))
        assert found.low < count / 2 < found.high
        assert 0.95 <= found.level < 0.97
