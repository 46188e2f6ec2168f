"""What cannot be compiled is refused before a compiler starts; the rest is in end_to_end."""

from __future__ import annotations

from pathlib import Path

import pytest
from runtime_models import write_chat_bundle

from edgetie.errors import BundleError, ProviderError
from edgetie.npu.compile import compile_bundle
from edgetie.providers.registry import PROVIDERS


@pytest.mark.parametrize("name", [name for name, row in PROVIDERS.items() if not row.contexts])
def test_provider_that_cannot_save_graphs(tmp_path: Path, name: str) -> None:
    bundle = write_chat_bundle(tmp_path / "bundle")
    with pytest.raises(ProviderError, match=f"provider='{name}': cannot save compiled graphs"):
        compile_bundle(bundle, tmp_path / "out", provider=name)
    assert not (tmp_path / "out").exists()


def test_dynamic_shapes(tmp_path: Path) -> None:
    bundle = write_chat_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="has dynamic shapes; first run edgetie fix-shapes"):
        compile_bundle(bundle, tmp_path / "out")


def test_bare_file(tmp_path: Path) -> None:
    bundle = write_chat_bundle(tmp_path / "bundle")
    (bundle / "edgetie.json").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx: has dynamic shapes"):
        compile_bundle(bundle, tmp_path / "out")
