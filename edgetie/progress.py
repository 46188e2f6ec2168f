"""Progress for anything that takes longer than two seconds."""

import time
from typing import Protocol


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

    def note(self, text: str) -> None:
        """Report something that a person who waits wants to know now."""

    def finish(self) -> None:
        """End the current step."""
        if self._name is not None:
            duration = time.perf_counter() - self._start
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + duration
            self._name = None


def format_duration(seconds: float) -> str:
    """Format a rough duration: ``40 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
