"""Targets and schemes, for people."""

from rich.table import Table

from edgetie.report.tables import plain_console
from edgetie.targets import SCHEMES, TARGETS


def print_schemes() -> None:
    """Print the scheme of each target, and what each scheme is."""
    console = plain_console()
    targets = Table("target", "scheme", "reason")
    for target in TARGETS.values():
        targets.add_row(target.name, target.scheme, target.reason)
    console.print(targets)
    schemes = Table("scheme", "weights in memory", "what it is")
    for scheme in SCHEMES.values():
        schemes.add_row(scheme.name, scheme.weights_in_memory, scheme.description)
    console.print(schemes)
