"""What every command shares: ``--json``, ``--quiet``, progress and tables on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def output_options(function: F) -> F:
    """Add ``--json`` (``as_json``) and ``--quiet`` to a command."""
    function = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else."
    )(function)
    return click.option("--quiet", is_flag=True, help="Print errors only.")(function)


def provider_option(function: F) -> F:
    """Add ``--provider``."""
    return click.option(
        "--provider",
        default="cpu",
        show_default=True,
        help="Execution provider to run on; an absent one is an error, never a fallback.",
    )(function)


def threads_option(function: F) -> F:
    """Add ``--threads``."""
    return click.option(
        "--threads", type=click.IntRange(min=1), help="Intra-op threads [default: all cores]."
    )(function)


def print_json(data: dict[str, Any]) -> None:
    """Print ``data`` as one JSON object on stdout."""
    click.echo(json.dumps(data, indent=1))
