"""``edgetie providers`` as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgetie.report.tables import Table, print_tables
from edgetie.targets import TARGETS

if TYPE_CHECKING:
    from edgetie.providers.environments import Availability


def print_providers(found: Sequence[Availability]) -> None:
    """Print every provider: whether it can be had, its scheme, whether times mean anything."""
    rows = [
        [
            each.row.name,
            each.where or "no",
            each.row.package,
            each.row.machines,
            TARGETS[each.row.target].scheme,
            each.row.latency,
        ]
        for each in found
    ]
    print_tables(Table(["provider", "starts", "comes with", "runs on", "scheme", "times"], rows))
    print()
    for each in found:
        if each.problem and each.row.environment:
            print(f"{each.row.name}: {each.problem}")
