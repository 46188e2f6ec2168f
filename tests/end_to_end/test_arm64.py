"""ARM64, emulated core by core: the tokens and the logits are those of this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from arm64 import CORES, install_cores

from edgetie.export.exporter import ExportReport
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.latency.bench import bench_model
from edgetie.quantize.quantizer import quantize_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def arm64() -> None:
    """The environment of ARM64, made once."""
    install_cores()


@pytest.fixture(scope="module")
def small_int8(
    exported: Callable[[str], ExportReport], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    target = tmp_path_factory.mktemp("arm64") / "int8"
    quantize_model(exported("Llama").bundle.directory, target)
    return target


def test_logits_are_those_of_this_machine(exported: Callable[[str], ExportReport]) -> None:
    bundle = exported("Llama").bundle.directory
    report = check_model(bundle, str(bundle), provider="arm64-a76", max_tokens=32, greedy_prompts=1)
    assert report.relative_error < 1e-5
    assert report.greedy_agreement == 1.0


@pytest.mark.parametrize("core", CORES)
def test_int8_is_that_of_this_machine(small_int8: Path, core: str) -> None:
    rounded = check_model(
        small_int8, str(small_int8), provider=core, max_tokens=32, greedy_prompts=0
    )
    assert rounded.relative_error < 0.05  # kernels differ in how they round activations


def test_the_real_model_gives_the_tokens_of_this_machine(real_int8: Path) -> None:
    report = check_model(
        real_int8, str(real_int8), provider="arm64-n2", max_tokens=32, greedy_prompts=1,
        greedy_tokens=16,
    )  # fmt: skip
    assert report.greedy_agreement == 1.0
    assert report.mean_kl_divergence < 2e-3


def test_nothing_is_timed_in_an_emulator(small_int8: Path) -> None:
    report = bench_model(small_int8, provider="arm64-a76", prompt_tokens=8, new_tokens=2, repeat=1)
    assert report.to_dict()["latency_valid"] is False
    assert report.nodes_per_provider["CPUExecutionProvider"] > 10
