"""Targets and schemes, for people."""

from __future__ import annotations

from rich.table import Table

from edgetie.report.tables import plain_console
from edgetie.targets import SCHEMES, TARGETS


def print_schemes() -> None:
    """Print the scheme of each target, and what each scheme is."""
    console = plain_console()
    targets = Table("target", "scheme", "why")
    for target in TARGETS.values():
        targets.add_row(target.name, target.scheme, target.why)
    console.print(targets)
    schemes = Table("scheme", "layout", "what it is")
    for scheme in SCHEMES.values():
        schemes.add_row(scheme.name, scheme.layout, scheme.words)
    console.print(schemes)
