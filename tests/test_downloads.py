"""What the quickstart downloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetie import downloads as demo
from edgetie.errors import SourceError


def test_the_text_is_the_novel_without_its_licence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = demo.demo_text()
    assert text.startswith("Produced by David Starner")
    assert "Gutenberg" not in text
    assert len(text) > 250_000
    assert [path.name for path in (tmp_path / "edgetie").iterdir()] == [demo.TEXT_FILE]


def test_another_file_of_that_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "TEXT_SHA256", "0" * 64)
    with pytest.raises(SourceError, match="SHA-256 differs"):
        demo.demo_text()
    assert not list((tmp_path / "edgetie").iterdir())
