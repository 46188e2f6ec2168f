"""Run the command line as a user does, and check how it refuses bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

Run = subprocess.CompletedProcess[str]


MAIN = "from edgetie_cli.main import main; main()"


def edgetie(*arguments: object, cwd: Path, **options: Any) -> Run:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def refused(done: Run, *parts: str) -> None:
    """The promise of every failure: exit code 2, one line that says what, nothing on stdout."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("edgetie: ")
    assert "Traceback" not in line
    assert "unexpected" not in line
    for part in parts:
        assert part in line
