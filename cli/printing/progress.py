"""Progress of a command on the terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from edgetie.progress import Stages

_HOLD_SECONDS = 2.0


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
        self._pending_lines: list[str] = []

    def stage(self, name: str) -> None:
        super().stage(name)
        self._status.update(f"{name} …")
        self._status.start()

    def advance(self, done: int, total: int) -> None:
        self._status.update(f"{self._name} … {done}/{total}")

    def note(self, text: str) -> None:
        self.print_lines()
        self._console.print(f"  {text}", highlight=False)

    def finish(self) -> None:
        name = self._name
        super().finish()
        if name is not None:
            self._status.stop()
            if sum(self.seconds.values()) >= _HOLD_SECONDS:
                self.print_lines()
            self._pending_lines.append(f"  {name} [dim]{self.seconds[name]:.1f} s[/dim]")

    def print_lines(self) -> None:
        for line in self._pending_lines:
            self._console.print(line, highlight=False)
        self._pending_lines.clear()


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
