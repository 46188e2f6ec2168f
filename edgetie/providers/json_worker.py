"""Worker processes of edgetie, which read a request and write an answer as JSON."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TextIO

from edgetie.errors import BundleError, EdgetieError, error_from_dict
from edgetie.providers.environments import broken_environment, find_environment
from edgetie.providers.registry import find_provider

logger = logging.getLogger(__name__)


def worker_command(module: str) -> list[str]:
    """Compose the command that runs a module here; the current directory is not searched."""
    return [sys.executable, "-P", "-m", module]


def start_worker(
    provider: str, module: str, *, interactive: bool = False
) -> tuple[subprocess.Popen[str], str]:
    """Start a process that runs a module of edgetie in the environment of a provider.

    Its stdin and stdout are pipes. So is its stderr unless the process is ``interactive``.

    Returns:
        The process, and the name of the provider in its environment.

    Raises:
        ProviderError: if no environment has the provider.
    """
    row = find_provider(provider)
    environment = find_environment(row)
    if environment is None:
        name, command, variables = provider, worker_command(module), dict(os.environ)
    else:
        name = row.worker_name or row.name
        command, variables = environment.command_for(module)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if interactive else subprocess.PIPE,
            text=True,
            env=variables,
        )
    except OSError as error:
        raise broken_environment(row, error) from error
    return process, name


def ask_worker(provider: str, module: str, request: dict[str, Any], subject: str) -> Any:
    """Send one request to a new worker process and return its answer.

    Args:
        provider: runs the module; the request's ``provider`` becomes its name in that environment.
        module: calls :func:`reply`.
        request: sent as JSON.
        subject: what the request is about, for errors.

    Raises:
        EdgetieError: the error that the worker reported.
        BundleError: if the process ended without an answer.
    """
    process, name = start_worker(provider, module)
    try:
        out, err = process.communicate(json.dumps({**request, "provider": name}))
    except BaseException:  # on an interrupt the worker must not continue
        process.kill()
        process.wait()
        raise
    try:
        answer = json.loads(out)
    except ValueError:
        logger.debug("%s ended without an answer:\n%s", module, err)
        lines, code = err.strip().splitlines(), process.returncode
        how = f"signal {-code}" if code < 0 else (lines or ["no output"])[-1]
        hint = " (out of memory?)" if code == -9 else ""
        raise BundleError(f"{subject}: the measuring process ended with {how}{hint}") from None
    if isinstance(answer, dict) and "error" in answer:
        raise error_from_dict(answer["error"])
    return answer


def answer_stream() -> TextIO:
    """Reserve stdout for answers; whatever libraries print to it goes to stderr from now on."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def reply(make_answer: Callable[[dict[str, Any]], Any]) -> None:
    """Read a request from stdin and write the answer, or ``{"error": ...}`` for an EdgetieError."""
    stream = answer_stream()
    try:
        answer = make_answer(json.load(sys.stdin))
    except EdgetieError as error:
        answer = {"error": error.to_dict()}
    with stream:
        json.dump(answer, stream)
