"""Print ``edgetie providers`` as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from edgetie.report.tables import Table, print_tables
from edgetie.targets import TARGETS

if TYPE_CHECKING:
    from edgetie.providers.availability import Availability

_STARTS = {"here": "here", "in its environment": "separate"}


def print_providers(providers: Sequence[Availability]) -> None:
    """Print every provider: whether it starts, its scheme, and what it needs."""
    rows = [
        [
            each.row.name,
            _STARTS.get(each.where, "no"),
            TARGETS[each.row.target].scheme,
            each.row.package.partition(",")[0],
            each.row.machines,
        ]
        for each in providers
    ]
    print_tables(Table(["provider", "starts", "scheme", "package", "hardware"], rows))
    click.echo()
    for each in providers:
        if each.row.latency != "measured":
            click.echo(f"{each.row.name}: {each.row.latency}")
        if each.problem and (each.row.environment or each.row.plugin):
            click.echo(f"{each.row.name}: {each.problem}")
        if each.instruction_set:
            click.echo(f"{each.row.name}: its kernels use {each.instruction_set}")
