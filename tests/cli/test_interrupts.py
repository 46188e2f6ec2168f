"""Signals end a command in one line at any moment, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LINE = "edgetie: interrupted; nothing was half-written"
RUN = """
import os, signal, sys
# whatever ran the tests may ignore some
signal.signal(signal.SIGINT, signal.default_int_handler)
for each in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(each, signal.SIG_DFL)
{before}
from edgetie_cli import start
if {command!r}:
    from pathlib import Path
    import click
    from edgetie.bundle.atomic import atomic_directory
    from edgetie_cli import main
    def interrupt():
        os.kill(os.getpid(), signal.{signal})
    @main.cli.command()
    def write():
        with atomic_directory("out") as staging:
            (staging / "half").write_text("x")
            exec({command!r})
    main.LazyGroup.get_command = lambda self, ctx, name: write
    sys.argv[1:] = ["write"]
start.main()
{after}
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")


def run(
    folder: Path, command: str = "", *, before: str = "", after: str = "", name: str = "SIGINT"
) -> subprocess.CompletedProcess[str]:
    """Run a command that executes ``command`` while it writes a directory."""
    script = RUN.format(before=before, command=command, after=after, signal=name)
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def require_clean_end(
    done: subprocess.CompletedProcess[str], folder: Path, code: int = 130
) -> None:
    assert (done.returncode, done.stdout, done.stderr.strip()) == (code, "", LINE)
    assert list(folder.iterdir()) == []


def test_while_modules_are_imported(tmp_path: Path) -> None:
    finder = """
class Finder:
    def find_spec(self, name, *_):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
    require_clean_end(run(tmp_path, before=finder), tmp_path)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_while_a_directory_is_written(tmp_path: Path, name: str, code: int) -> None:
    require_clean_end(run(tmp_path, "interrupt()", name=name), tmp_path, code)


def test_again_while_the_first_one_cleans_up(tmp_path: Path) -> None:
    command = """
try:
    interrupt()
finally:
    interrupt()
    interrupt()
"""
    require_clean_end(run(tmp_path, command), tmp_path)


def test_in_a_callback_that_cannot_raise(tmp_path: Path) -> None:
    command = """
import time
class Owner:
    def __del__(self):
        interrupt()
Owner()
time.sleep(60)
"""
    require_clean_end(run(tmp_path, command), tmp_path)


def test_turned_into_another_error_by_a_library(tmp_path: Path) -> None:
    command = """
try:
    interrupt()
except BaseException:
    raise ImportError("initialization failed")
"""
    require_clean_end(run(tmp_path, command), tmp_path)


def test_with_a_thread_that_never_ends(tmp_path: Path) -> None:
    command = """
import threading
threading.Thread(target=threading.Event().wait).start()
interrupt()
"""
    require_clean_end(run(tmp_path, command), tmp_path)


def test_an_output_that_is_complete_stays(tmp_path: Path) -> None:
    last = "import atexit; atexit.register(interrupt)"
    done = run(tmp_path, last)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "half").read_text() == "x"


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_signals_that_the_caller_ignores_stay_ignored(tmp_path: Path, name: str) -> None:
    before = f"signal.signal(signal.{name}, signal.SIG_IGN)"
    done = run(tmp_path, "interrupt()", before=before, name=name)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "half").exists()
