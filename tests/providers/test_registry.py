"""The table of providers: look-up, and why a provider is absent."""

from __future__ import annotations

from dataclasses import replace

import onnxruntime
import pytest
from own_provider import needs_own_provider

from edgetie.errors import ProviderError
from edgetie.providers.registry import (
    PROVIDERS,
    explain_absence,
    find_provider,
    require_provider,
)
from edgetie.targets import TARGETS


def test_rows_are_consistent() -> None:
    for name, row in PROVIDERS.items():
        assert row.name == name
        assert row.target in TARGETS


def test_names_are_found_in_any_case() -> None:
    assert find_provider("CPU") is PROVIDERS["cpu"]
    assert require_provider("cpu").ort_name == "CPUExecutionProvider"


@needs_own_provider
def test_auto_is_the_own_provider_where_it_is_installed() -> None:
    assert find_provider("auto") is find_provider("AUTO") is PROVIDERS["edgetie"]


def test_unknown_name() -> None:
    with pytest.raises(ProviderError, match="unknown; known are auto, cpu, edgetie") as caught:
        find_provider("gpu")
    assert (caught.value.parameter, caught.value.value) == ("provider", "gpu")


def test_reasons_for_absence() -> None:
    assert explain_absence(PROVIDERS["cpu"]) is None
    assert "not for Python" in str(explain_absence(PROVIDERS["wasm"]))
    absent = replace(PROVIDERS["openvino"], ort_name="NowhereExecutionProvider")
    reason = str(explain_absence(absent))
    assert reason.startswith(f"not in the installed onnxruntime {onnxruntime.__version__} (it has ")
    assert "onnxruntime-openvino" in reason
    assert "edgetie providers --install openvino" in reason
    emulated = replace(PROVIDERS["cpu"], worker_name="cpu", environment="arm64")
    assert "separate environment" in str(explain_absence(emulated))


def test_absent_provider_is_never_replaced() -> None:
    with pytest.raises(ProviderError, match="provider='wasm': not for Python"):
        require_provider("wasm")
