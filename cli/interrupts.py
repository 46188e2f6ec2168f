"""Signals that interrupt a command end it in one line, with nothing half-written."""

import _thread
import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

_NUMBERS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)  # no SIGHUP on Windows
]
_AGAIN = 0.01
"""Seconds until an interrupt that a library swallowed is sent again."""
_IMPATIENCE = 1.0
"""Seconds in which more signals mean the same, and do not interrupt the cleaning up."""


class Interrupts:
    """Turn the signals that ask a program to end into :class:`KeyboardInterrupt`.

    It unwinds the program, so that no partial output stays.

    Attributes:
        last: the last signal that came, if any.
    """

    def __init__(self) -> None:
        self.last: signal.Signals | None = None
        self._seconds = -_IMPATIENCE
        self._is_swallowed = self._cannot_raise = False

    def catch(self) -> None:
        """Handle the signals, but for those that the program was started to ignore."""
        for number in _NUMBERS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background
                signal.signal(number, self._raise)
        sys.unraisablehook = self._raise_later

    def _raise(self, number: int, _: FrameType | None) -> None:
        if self._cannot_raise:
            return
        seconds, self._seconds = self._seconds, time.monotonic()
        if self._seconds - seconds >= _IMPATIENCE:
            self.last, self._is_swallowed = signal.Signals(number), False
            raise KeyboardInterrupt

    def _raise_later(self, unraisable: Any) -> None:
        """Interrupt again if a callback was interrupted, which cannot raise."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)
            return
        self._cannot_raise = self._is_swallowed = True  # nor can this hook
        self._seconds = -_IMPATIENCE
        threading.Thread(target=self._send_again, daemon=True).start()
        self._cannot_raise = False

    def _send_again(self) -> None:
        while self._is_swallowed:
            time.sleep(_AGAIN)
            _send(self.last or signal.SIGINT)


def _send(number: signal.Signals) -> None:
    """Send a signal to the main thread, which may be waiting."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:  # Windows
        _thread.interrupt_main(number)


def ignore_interrupts() -> None:
    """Ignore the signals from now on: the program is ending."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def end_interrupted(number: int = signal.SIGINT) -> NoReturn:
    """End the program with one line on stderr and the exit code that shells use.

    Its threads are not waited for: one that a signal hit while it was started may never end.
    """
    ignore_interrupts()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError):
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, b"edgetie: interrupted; nothing was half-written\n")
    atexit._run_exitfuncs()
    os._exit(128 + number)
