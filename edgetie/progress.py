"""Progress for anything that takes longer than two seconds."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Protocol

_HOLD_SECONDS = 2.0


class Progress(Protocol):
    """Receives the progress of a long call."""

    def stage(self, name: str) -> None:
        """Begin a named step, which ends the one before it."""

    def advance(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` parts of the current step are finished."""


class Stages:
    """Measure the time of named steps. It prints nothing: displays derive from it.

    Attributes:
        seconds: duration of each finished step, in order.
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
            duration = time.perf_counter() - self._start
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + duration
            self._name = None


class LiveStages(Stages):
    """Show the current step as a spinner on stderr and print a line with the time of each step.

    A line is held back until a later step has finished and two seconds have passed. Lines that are
    still held back when a command fails are dropped, so that an error of usage stands alone.
    """

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self._console = Console(file=sys.stderr)  # stays this stream if sys.stderr is replaced
        self._status = self._console.status("")
        self._held_back: list[str] = []

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
            if sum(self.seconds.values()) >= _HOLD_SECONDS:
                self.print_lines()
            self._held_back.append(f"  {name} [dim]{self.seconds[name]:.1f} s[/dim]")

    def print_lines(self) -> None:
        for line in self._held_back:
            self._console.print(line, highlight=False)
        self._held_back.clear()


@contextmanager
def live(quiet: bool) -> Iterator[Stages]:
    """Show the progress of a command unless ``quiet``.

    Until it ends, stdout is reserved for the command's result: what the code of a model or a
    library prints goes to stderr.
    """
    stages = Stages() if quiet else LiveStages()
    with _stdout_to_stderr():
        try:
            yield stages
        finally:
            stages.finish()
    if isinstance(stages, LiveStages):
        stages.print_lines()


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr, in Python and for the file descriptor of native code."""
    try:
        sys.stdout.flush()
        original = os.dup(1)
        os.dup2(2, 1)
    except (OSError, AttributeError):  # one of them is closed
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(original, 1)
        os.close(original)
