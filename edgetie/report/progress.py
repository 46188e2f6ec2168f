"""Progress for anything that takes longer than two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
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

        self._console = Console(stderr=True)
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
    """A progress display for a command; silent if ``quiet``."""
    stages = Stages() if quiet else LiveStages()
    try:
        yield stages
    finally:
        stages.finish()
