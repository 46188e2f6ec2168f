"""Bundles: written whole or not at all, and read with their manifests taken at their word."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from runtime_models import write_chat_bundle, write_plain

from edgetie.bundle.atomic import atomic_directory, check_destination
from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.manifest import Manifest
from edgetie.bundle.names import FORMAT, MANIFEST
from edgetie.errors import BundleError
from edgetie.graph.external_data import check_external_data


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_chat_bundle(tmp_path / "bundle")


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(data)
    (bundle / MANIFEST).write_text(json.dumps(data), encoding="utf-8")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def write(target: Path, then: Callable[[Path], object], *, force: bool = False) -> None:
    """Write a directory of one file; ``then`` is called with it before it is complete."""
    with atomic_directory(target, force=force) as staging:
        (staging / "file").write_text("x", encoding="utf-8")
        then(staging)


def fail(error: type[BaseException]) -> Callable[[Path], object]:
    def then(_: Path) -> None:
        raise error

    return then


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_directory_appears_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep"
    with atomic_directory(target) as staging:
        (staging / "file").write_text("x", encoding="utf-8")
        assert not target.exists()
    assert contents(target) == {"file": b"x"}
    assert names(target.parent) == ["deep"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write(tmp_path / "new" / "deep", fail(error))
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_keeps_the_old_bundle(
    bundle: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    before = contents(bundle)
    with pytest.raises(error):
        write(bundle, fail(error), force=True)
    assert contents(bundle) == before
    assert names(tmp_path) == ["bundle"]


def test_old_bundle_comes_back_if_the_new_one_cannot_move_in(bundle: Path, tmp_path: Path) -> None:
    before = contents(bundle)
    with pytest.raises(FileNotFoundError):
        write(bundle, shutil.rmtree, force=True)
    assert contents(bundle) == before
    assert names(tmp_path) == ["bundle"]


def test_only_a_bundle_is_replaced_and_only_with_force(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="choose another output or pass force=True"):
        check_destination(bundle)
    check_destination(bundle, force=True)
    other = tmp_path / "other"
    other.mkdir()
    check_destination(other)  # empty: may be used
    assert other.is_dir()
    (other / "thesis.txt").write_text("x", encoding="utf-8")
    for where in (other, other / "thesis.txt"):
        for force in (False, True):
            with pytest.raises(BundleError, match="never replaced"):
                check_destination(where, force=force)
    with pytest.raises(BundleError, match="cannot be created"):
        write(other / "thesis.txt" / "below", fail(AssertionError))


def test_destination_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def interfere(_: Path) -> None:
        target.mkdir()
        (target / "thesis.txt").write_text("x", encoding="utf-8")

    with pytest.raises(BundleError, match="never replaced"):
        write(target, interfere)
    assert contents(target) == {"thesis.txt": b"x"}
    assert names(tmp_path) == ["out"]


def test_replacing_through_a_link_keeps_the_link(bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("bundle")
    with atomic_directory(link, force=True) as staging:
        (staging / "file").write_text("x", encoding="utf-8")
    assert link.is_symlink()
    assert contents(bundle) == {"file": b"x"}


def test_current_directory_is_no_destination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="current directory"):
        check_destination(".")


def test_full_disk(bundle: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = contents(bundle)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(staging: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        (staging / "large").write_bytes(bytes(2000))

    try:
        with pytest.raises(BundleError, match="no space left"):
            write(bundle, fill, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(bundle) == before
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signal_in_the_middle_of_writing(tmp_path: Path, number: str, code: int) -> None:
    script = """
import sys, time
import click
from edgetie.bundle.atomic import atomic_directory
from edgetie_cli import main
@main.cli.command()
def write():
    with atomic_directory("out") as staging:
        (staging / "half").write_text("x")
        print("writing", flush=True)
        time.sleep(60)
main.LazyGroup.get_command = lambda self, ctx, name: write
sys.argv[1:] = ["write"]
main.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    time.sleep(0.1)
    process.send_signal(getattr(signal, number))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr.strip() == "edgetie: interrupted; nothing was half-written"
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format=99), "newer edgetie"),
        (lambda data: data.update(format="1"), "not a valid manifest"),
        (lambda data: data.update(surprise=1), "surprise"),
        (lambda data: data.pop("signature"), "signature"),
        (lambda data: data["signature"].update(max_positions="many"), "max_positions"),
        (lambda data: data["signature"].update(eos_token_ids=["2"]), "eos_token_ids"),
        (lambda data: data.update(files=["model.onnx"]), "files"),
        (lambda data: data["files"].update({"model.onnx": {"bytes": "1", "sha256": ""}}), "bytes"),
        (lambda data: data["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "outside"),
        (lambda data: data["files"].update({"/etc/x": {"bytes": 1, "sha256": ""}}), "outside"),
        (lambda data: data["files"].update({"ghost": {"bytes": 1, "sha256": ""}}), "missing"),
        (lambda data: data.update(ties=[{"name": "x"}]), "not a valid manifest"),
    ],
)
def test_manifest_that_is_wrong(
    bundle: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(bundle, change)
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(bundle)
    assert str(bundle) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b'{"format": 1, ', b"[1]", b"null", b"\xff\xfe\x00"])
def test_manifest_that_is_damaged(bundle: Path, data: bytes) -> None:
    (bundle / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match="not a valid manifest"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("layout", "weights"), [("packed", "prepacked"), ("mapped", "mapped"), ("mixed", "mixed")]
)
def test_manifest_of_format_1_opens(bundle: Path, layout: str, weights: str) -> None:
    def age(data: dict[str, Any]) -> None:
        del data["weights_in_memory"]
        data.update(layout=layout, format=1)

    edit_manifest(bundle, age)
    manifest = open_bundle(bundle).manifest
    assert manifest is not None
    assert (manifest.weights_in_memory, manifest.format) == (weights, FORMAT)


def test_manifest_survives_a_round_trip(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert Manifest.from_json(manifest.to_json(), bundle / MANIFEST) == manifest


def test_hash_finds_a_changed_byte(bundle: Path) -> None:
    path = bundle / "model.onnx.data"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    open_bundle(bundle)  # sizes alone
    with pytest.raises(BundleError, match=r"model\.onnx\.data: damaged or changed"):
        open_bundle(bundle, hashes=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("location", "../x"), ("location", "/etc/passwd"), ("location", ""),
        ("offset", "-5"), ("offset", "many"), ("length", "-1"),
    ],
)  # fmt: skip
def test_external_data_outside_the_file(tmp_path: Path, key: str, value: str) -> None:
    write_plain(tmp_path)
    path = next(tmp_path.glob("*.onnx"))
    model = onnx.load(str(path), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    next(entry for entry in tensor.external_data if entry.key == key).value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=tensor.name):
        check_external_data(path)


def test_name_that_is_not_utf8(bundle: Path) -> None:
    other = os.fsdecode(os.fsencode(bundle.parent) + b"/caf\xe9")
    try:
        shutil.copytree(bundle, other)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(BundleError, match="not UTF-8"):
        open_bundle(other)
    with pytest.raises(BundleError, match="not UTF-8"):
        check_destination(other, force=True)


def test_a_neighbour_of_a_bare_file_is_no_part_of_it(bundle: Path) -> None:
    shutil.copyfile(bundle / "model.onnx", bundle / "prefill_model.onnx")
    opened = open_bundle(bundle / "prefill_model.onnx")
    assert opened.model_paths == [bundle / "prefill_model.onnx"]
    assert open_bundle(bundle / "model.onnx").model_paths == [bundle / "model.onnx"]
