"""OpenVINO in its separate environment: compared with this one, strict, and broken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import (
    MAIN,
    refused,
)

from edgetie.errors import ProviderError
from edgetie.export.exporter import ExportReport
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.latency.bench import bench_model
from edgetie.providers.environments import (
    Environment,
    environment_directory,
    install_environment,
)
from edgetie.report.html import write_html
from edgetie.runtime.session import open_session

pytestmark = pytest.mark.slow

SMALL = {"new_tokens": 4, "repeat": 2, "threads": 1}


@pytest.fixture(scope="session")
def openvino() -> Environment:
    """The environment of OpenVINO, installed once."""
    if sys.platform != "linux":
        pytest.skip("tried on Linux")
    file = environment_directory("openvino") / "environment.json"
    if file.is_file():
        found = json.loads(file.read_text("utf-8"))
        return Environment(tuple(found["command"]), found["variables"])
    return install_environment("openvino")


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
    assert not open_session(bundle, provider="cpu", strict=True).fallback_nodes


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
