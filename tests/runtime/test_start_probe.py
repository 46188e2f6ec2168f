"""The probe that opens a small model on a provider, in a process of its own."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import bag_models as bag
import pytest

from edgetie.errors import ProviderError
from edgetie.runtime.start_probe import start_provider


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.onnx"
    text = "double (float[1, 2] x) => (float[1, 2] y) { y = Add (x, x) }"
    bag.write_graph(path, text, table=False)
    return base64.b64encode(path.read_bytes()).decode()


def test_nodes_of_a_provider_that_starts(model: str) -> None:
    nodes = start_provider({"model": model, "provider": "cpu"})["nodes"]
    assert nodes == {"CPUExecutionProvider": 1}


def test_a_provider_that_does_not_start(model: str) -> None:
    with pytest.raises(ProviderError, match="gpu"):
        start_provider({"model": model, "provider": "gpu"})


def test_it_answers_in_json(model: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgetie.runtime.start_probe"],
        input=json.dumps({"model": model, "provider": "cpu"}),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["nodes"] == {"CPUExecutionProvider": 1}
