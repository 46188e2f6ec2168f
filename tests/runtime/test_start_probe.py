"""The probe that starts a provider, in this process and in a separate one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from own_provider import needs_own_provider

from edgetie.errors import ProviderError
from edgetie.runtime.start_probe import start_provider


def test_nodes_of_a_provider_that_starts() -> None:
    assert start_provider({"provider": "cpu"})["nodes"] == {"CPUExecutionProvider": 1}


@needs_own_provider
def test_the_own_provider_starts() -> None:
    assert start_provider({"provider": "edgetie"})["nodes"] == {"EdgetieExecutionProvider": 1}


def test_a_provider_that_does_not_start() -> None:
    with pytest.raises(ProviderError, match="gpu"):
        start_provider({"provider": "gpu"})


def test_it_answers_in_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgetie.runtime.start_probe"],
        input=json.dumps({"provider": "cpu"}), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["nodes"] == {"CPUExecutionProvider": 1}
