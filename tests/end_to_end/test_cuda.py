"""On an NVIDIA GPU, in the environment of CUDA."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgetie.harness.accuracy.check import check_model
from edgetie.harness.accuracy.samples import BUILT_IN_TEXT
from edgetie.harness.latency.bench import bench_model
from edgetie.providers.environments import environment_directory, install_environment
from edgetie.quantize.quantizer import quantize_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="needs an NVIDIA GPU"),
]


@pytest.fixture(scope="module", autouse=True)
def cuda() -> None:
    """The environment of CUDA, made once."""
    if not (environment_directory("cuda") / "environment.json").is_file():
        install_environment("cuda")


@pytest.mark.parametrize(("scheme", "kl"), [("fp16", 1e-3), ("int8-fp16", 2e-2)])
def test_predictions_are_those_of_fp32(
    real_bundle: Path, tmp_path: Path, scheme: str, kl: float
) -> None:
    bundle = quantize_model(real_bundle, tmp_path / "out", scheme=scheme).bundle
    report = check_model(
        bundle, str(real_bundle), provider="cuda", text=BUILT_IN_TEXT, max_tokens=512
    )
    nodes = report.nodes_per_provider
    assert nodes["CUDAExecutionProvider"] >= 0.9 * sum(nodes.values())
    assert report.mean_kl_divergence < kl


def test_latency_is_measured(real_bundle: Path, tmp_path: Path) -> None:
    bundle = quantize_model(real_bundle, tmp_path / "out", target="cuda").bundle
    report = bench_model(bundle, provider="cuda", prompt_tokens=32, new_tokens=16, repeat=1)
    assert report.to_dict()["latency_valid"] is True
