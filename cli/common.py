"""Options and checks that commands share."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edgetie.harness.accuracy.check import AccuracyReport

MAX_THREADS = 1024
"""More than any machine has. ONNX Runtime tries to start any number."""

F = TypeVar("F", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A number in a range, but not NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("NaN is not a number", param, ctx)
        return number


class Share(Number):
    """A share, as a number or in percent: 0.003 or 0.3%."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = value.strip() if isinstance(value, str) else ""
        if not text.endswith("%"):
            with contextlib.suppress(ValueError):
                if self.max == 1 < float(text) <= 100:
                    advice = f"write {float(text) / 100:g} or {text}%"
                    self.fail(f"{text} is more than 1; {advice}", param, ctx)
            return super().convert(value, param, ctx)
        try:
            share = float(text[:-1]) / 100
        except ValueError:
            self.fail(f"{value!r} is neither a number nor a percentage", param, ctx)
        return super().convert(share, param, ctx)


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in new versions only
    """A duration in seconds: 90, 90s, 5m or 1.5h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"(\d+\.?\d*)\s*([smh]?)", value.strip())
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is not a duration; write 90, 90s, 5m or 1.5h", param, ctx)
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def require_drawable(option: str, file: Path) -> None:
    """Refuse a plot or report that cannot be written, before the work starts."""
    from edgetie.report import plots

    endings = plots.formats()
    if option == "--plot" and file.suffix.lower() not in endings:
        raise click.UsageError(f"{option} {file}: not an image; use .png, .svg or .pdf")
    if not os.access(file.parent, os.W_OK):
        raise click.UsageError(f"{option} {file}: {file.parent} is not a writable directory")


def output_options(function: F) -> F:
    """Add ``--json`` (``as_json``), ``--quiet`` and ``--verbose`` to a command."""
    return add_options(
        function,
        click.option("--quiet", is_flag=True, help="Print errors only."),
        click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else."
        ),
        click.option(
            "-v", "--verbose", is_flag=True, expose_value=False, callback=_show_log,
            help="Print the library's log on stderr.",
        ),
    )  # fmt: skip


def add_options(function: F, *options: Callable[[F], F]) -> F:
    """Add options to a command in the order of its help."""
    for option in reversed(options):  # click lists the last one first
        function = option(function)
    return function


def _show_log(_: click.Context, __: click.Parameter, verbose: bool) -> None:
    """Send the records of edgetie's loggers to stderr."""
    if verbose:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logger = logging.getLogger("edgetie")
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG)
        logger.propagate = False


_PROVIDER_HELP = (
    "auto is edgetie's own where it is installed and runs nodes of the model, otherwise cpu, ONNX "
    "Runtime's own; an absent one is an error, never a fallback. See edgetie providers."
)

provider_option = click.option(
    "--provider", default="auto", show_default=True,
    help=f"Execution provider to run on: {_PROVIDER_HELP}",
)  # fmt: skip


def providers_options(function: F) -> F:
    """Add ``--provider``, several times (``providers``), and ``--strict``."""
    return add_options(
        function,
        click.option(
            "--provider", "providers", multiple=True, default=["auto"], show_default=True,
            help=f"Execution provider to run on, several times for a comparison: {_PROVIDER_HELP}",
        ),
        click.option(
            "--strict", is_flag=True,
            help="Fail if a provider leaves nodes to another one; auto may.",
        ),
    )  # fmt: skip


threads_option = click.option(
    "--threads", type=click.IntRange(min=1, max=MAX_THREADS),
    help="Intra-op threads [default: all cores].",
)  # fmt: skip


max_distance_option = click.option(
    "--max-distance", type=Number(0, 0.1), default=0.0,
    help="Also merge copies that differ by at most this share of the table (Frobenius norm). "
    "0.01 is 1 %. By default such copies are only reported.",
)  # fmt: skip


def limit_options(function: F) -> F:
    """Add ``--max-kl``, ``--min-top1`` and ``--max-perplexity-increase``."""
    return add_options(
        function,
        click.option(
            "--max-kl", type=Number(min=0), help="Limit of the mean KL divergence, in nats."
        ),
        click.option(
            "--min-top1", type=Share(0, 1),
            help="Least share of positions with the same likeliest token: 0.98, or 98%. "
            "Twice its standard error is granted.",
        ),
        click.option(
            "--max-perplexity-increase", type=Share(min=-1),
            help="Limit of the perplexity's increase: 0.003, or 0.3%. "
            "Twice its standard error is granted.",
        ),
    )  # fmt: skip


def failed(reports: Sequence[AccuracyReport]) -> int:
    """Print the limits that are not met on stderr; return the exit code, 1 if there are any."""
    for report in reports:
        where = f"{report.provider}: " if len(reports) > 1 else ""
        for failure in report.failures.values():
            click.echo(f"edgetie: {where}{failure}", err=True)
    return 0 if all(report.passed for report in reports) else 1


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object on stdout, with ``null`` for numbers that are not finite."""
    click.echo(json.dumps(_finite(data), indent=1, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
