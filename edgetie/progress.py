"""Progress for anything that takes longer than two seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Protocol


class Progress(Protocol):
    """Where a long call says what it is doing; pass one to see progress."""

    def stage(self, name: str) -> None:
        """A named step begins; the one before it is over."""

    def advance(self, done: int, total: int) -> None:
        """``done`` of ``total`` parts of the current step are finished."""


class Stages:
    """Times named steps; the base of every progress display, silent by itself.

    Attributes:
        seconds: what each finished step took, in order.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name: str | None = None
        self._start = 0.0

    def stage(self, name: str) -> None:
        self.finish()
        self._name, self._start = name, time.perf_counter()

    def advance(self, done: int, total: int) -> None:
        pass

    def finish(self) -> None:
        """End the current step."""
        if self._name is not None:
            spent = time.perf_counter() - self._start
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + spent
            self._name = None


class LiveStages(Stages):
    """Shows the current step as a spinner on stderr and leaves a line with its time."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self._console = Console(file=sys.stderr)  # this one, also while another stands in for it
        self._status = self._console.status("")

    def stage(self, name: str) -> None:
        super().stage(name)
        self._status.update(f"{name} …")
        self._status.start()

    def advance(self, done: int, total: int) -> None:
        self._status.update(f"{self._name} … {done}/{total}")

    def finish(self) -> None:
        name = self._name
        super().finish()
        if name is not None:
            self._status.stop()
            self._console.print(f"  {name} [dim]{self.seconds[name]:.1f} s[/dim]", highlight=False)


@contextmanager
def live(quiet: bool) -> Iterator[Stages]:
    """A progress display for a command; silent if ``quiet``.

    Until it ends, stdout is kept for the command's result: what a model's own code or a library
    prints goes to stderr.
    """
    stages = Stages() if quiet else LiveStages()
    with _stdout_to_stderr():
        try:
            yield stages
        finally:
            stages.finish()


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send Python's stdout to stderr, and the file descriptor that native code writes to."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
    except (OSError, AttributeError):  # one of them is closed
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
