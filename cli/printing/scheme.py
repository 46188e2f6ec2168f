"""Targets and schemes, for people."""

from edgetie.report.tables import plain_console, plain_table, print_drawn
from edgetie.targets import QUANTIZE_SCHEMES, TARGETS


def print_schemes() -> None:
    """Print the scheme of each target, and what each scheme is."""
    console = plain_console()
    targets = plain_table("target", "scheme", "reason")
    for target in TARGETS.values():
        targets.add_row(target.name, target.scheme, target.reason)
    print_drawn(console, targets)
    console.print()
    schemes = plain_table("scheme", "weights in memory", "what it is")
    for scheme in QUANTIZE_SCHEMES.values():
        schemes.add_row(scheme.name, scheme.weights_in_memory, scheme.description)
    print_drawn(console, schemes)
