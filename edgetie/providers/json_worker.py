"""How a measuring process answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from edgetie.errors import EdgetieError


def answer_stream() -> TextIO:
    """stdout, kept for answers: libraries that print to it write to stderr from here on."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def reply(make: Callable[[dict[str, Any]], Any]) -> None:
    """Answer the request on stdin, both JSON; errors of ours as ``{"error": {"type", "message"}}``,
    which :func:`edgetie.providers.environments.ask` raises again.
    """
    stream = answer_stream()
    try:
        answer = make(json.load(sys.stdin))
    except EdgetieError as error:
        answer = {"error": {"type": type(error).__name__, "message": str(error)}}
    with stream:
        json.dump(answer, stream)
