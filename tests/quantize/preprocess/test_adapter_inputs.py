"""Quantizing a base with adapters: the base stays what it is without, adapters stay floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from adapter_models import IDS, AdaptedBundle, largest_error, source

from edgetie.bundle.bundle import open_bundle
from edgetie.export.exporter import export_model
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.adapters import AdapterFile
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.session import open_session


def errors(bundle: Path, adapted: AdaptedBundle, provider: str = "cpu") -> dict[str | None, float]:
    """The error of each adapter's logits against torch in fp32."""
    session = open_session(bundle, threads=1, provider=provider)
    result = {}
    for name, expected in adapted.logits.items():
        session.use_adapter(name)
        logits = Decoder(session, 1, len(IDS)).prefill(np.array([IDS]))[0]
        result[name] = largest_error(logits, expected[-1])
    return result


@pytest.mark.parametrize("scheme", ["int8", "int8-mapped", "int8-fp16"])
def test_adapters_lose_no_more_than_their_base(
    adapted_bundle: AdaptedBundle, tmp_path: Path, scheme: str
) -> None:
    quantize_model(adapted_bundle.directory, tmp_path / "q", scheme=scheme)
    found = errors(tmp_path / "q", adapted_bundle)
    assert max(found.values()) < max(0.04, 2 * found[None])


def test_the_base_is_the_same_as_without_adapters(
    adapted_bundle: AdaptedBundle, tmp_path: Path
) -> None:
    export_model(source(), tmp_path / "fp32")
    quantize_model(tmp_path / "fp32", tmp_path / "alone")
    report = quantize_model(adapted_bundle.directory, tmp_path / "int8")
    assert report.manifest.quantization["smoothed"]
    assert report.manifest.quantization["rotated"]
    alone, both = (tmp_path / name / "model.onnx.data" for name in ("alone", "int8"))
    assert alone.read_bytes() == both.read_bytes()
    assert report.manifest.ties == open_bundle(tmp_path / "alone").manifest.ties


def test_adapters_stay_floats(adapted_bundle: AdaptedBundle, tmp_path: Path) -> None:
    report = quantize_model(adapted_bundle.directory, tmp_path / "int8")
    assert list(report.manifest.adapters) == ["small", "large"]
    before, after = (
        AdapterFile(folder / "large.onnx_adapter").tensors
        for folder in (adapted_bundle.directory, tmp_path / "int8")
    )
    assert {n: (a.shape, a.dtype) for n, a in before.items()} == {
        n: (a.shape, a.dtype) for n, a in after.items()
    }
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    graph = onnx.load(tmp_path / "int8" / "model.onnx", load_external_data=False).graph
    optional = {t.name: list(t.dims) for t in graph.initializer if ".lora_" in t.name}
    assert optional.keys() == before.keys()
    assert all(0 in sizes for sizes in optional.values())
    assert optional.keys() <= {value.name for value in graph.input}


def test_limits_hold_for_the_base(adapted_bundle: AdaptedBundle, tmp_path: Path) -> None:
    from edgetie.harness.accuracy.thresholds import Thresholds

    quantize_model(adapted_bundle.directory, tmp_path / "q", limits=Thresholds(max_kl=1.0))
    assert max(errors(tmp_path / "q", adapted_bundle).values()) < 0.04
