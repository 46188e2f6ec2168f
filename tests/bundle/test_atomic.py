"""Outputs are written completely or not at all, whatever interrupts them."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_models import write_chat_bundle

from edgetie.bundle.atomic import atomic_directory, atomic_files, check_destination
from edgetie.errors import BundleError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_chat_bundle(tmp_path / "bundle")


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
    with pytest.raises(BundleError, match="cannot be written"):
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


def test_files_appear_together(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    with atomic_files(target) as folder:
        for name in ("m.onnx", "m.onnx.data"):
            (folder / name).write_bytes(name.encode())
        assert not target.exists()
    assert contents(tmp_path) == {name: name.encode() for name in ("m.onnx", "m.onnx.data")}


def write_files(target: Path, *, force: bool) -> None:
    with atomic_files(target, force=force) as folder:
        (folder / "m.onnx.data").write_text("new", encoding="utf-8")
        (folder / "m.onnx").write_text("new", encoding="utf-8")


@pytest.mark.parametrize("name", ["m.onnx", "m.onnx.data"])
def test_files_are_replaced_only_with_force(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("old", encoding="utf-8")
    with pytest.raises(BundleError, match="already exists; choose another output or pass force"):
        write_files(tmp_path / "m.onnx", force=False)
    assert contents(tmp_path) == {name: b"old"}
    write_files(tmp_path / "m.onnx", force=True)
    assert contents(tmp_path) == {"m.onnx": b"new", "m.onnx.data": b"new"}


def test_a_single_file_is_always_there_while_others_replace_it(tmp_path: Path) -> None:
    program = (
        "import sys; from edgetie.bundle.atomic import atomic_files\n"
        "for _ in range(300):\n"
        "    with atomic_files(sys.argv[1], force=True) as folder:\n"
        "        (folder / 'file').write_bytes(b'x' * 100)"
    )
    target = tmp_path / "file"
    target.write_bytes(b"x" * 100)
    command = [sys.executable, "-c", program, str(target)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        assert target.read_bytes() == b"x" * 100
    for writer in writers:
        assert writer.communicate()[1] == b""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_directory_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(BundleError, match="already exists"):
        write_files(tmp_path / "m.onnx", force=True)


def test_replaced_files_come_back_if_the_main_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "m.onnx.data").write_text("old", encoding="utf-8")

    def write_data_only() -> None:
        with atomic_files(tmp_path / "m.onnx", force=True) as folder:
            (folder / "m.onnx.data").write_text("new", encoding="utf-8")

    with pytest.raises(FileNotFoundError):
        write_data_only()
    assert contents(tmp_path) == {"m.onnx.data": b"old"}


def test_file_in_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be written"):
        write_files(tmp_path / "nowhere" / "m.onnx", force=False)
    assert names(tmp_path) == []


def test_an_interrupt_of_moving_or_removing_leaves_all_or_nothing(
    bundle: Path, tmp_path: Path
) -> None:
    """Each line of both is interrupted once, while a bundle is replaced."""
    before = contents(bundle)
    results = set()
    for number in itertools.count(1):
        with contextlib.suppress(KeyboardInterrupt, OSError), interrupt_at(number) as lines:
            write(bundle, lambda staging: None, force=True)
        assert names(tmp_path) == ["bundle"], number
        if next(lines) <= number:
            break
        is_new = contents(bundle) == {"file": b"x"}
        assert is_new or contents(bundle) == before, number
        results.add(is_new)
        shutil.rmtree(bundle)
        write_chat_bundle(bundle)
    assert results == {True, False}


@contextlib.contextmanager
def interrupt_at(number: int) -> Iterator[Iterator[int]]:
    """Interrupt moving or removing before the so-many-th line that runs; yields their counter."""
    lines = itertools.count(1)

    def trace(frame: Any, event: str, _: object) -> Any:
        if frame.f_code.co_name not in ("_move", "rmtree", "_rmtree_safe_fd"):
            return trace
        if event == "line" and next(lines) == number:
            raise KeyboardInterrupt
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(old)
