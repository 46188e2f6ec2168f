"""One picture of what 8 bits cost, weight by weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgetie.report.plots import DARK, figure_for

if TYPE_CHECKING:
    from edgetie.quantize.mixed_precision.sensitivity import Cost


def plot_costs(costs: Sequence[Cost], path: Path) -> None:
    """Draw the divergence that rounding each product adds, in graph order, and what was done.

    Args:
        costs: of :class:`edgetie.quantize.QuantizeReport`.
        path: where; the suffix chooses the format, e.g. ``.png``.

    Raises:
        EdgetieError: if matplotlib is not installed.
        BundleError: if the file cannot be written.
    """
    with figure_for(path, width=9, height=max(2.5, 1 + 0.16 * len(costs))) as figure:
        axes = figure.subplots()
        colors = [DARK[1] if c.kept else DARK[2] if c.higher_precision else DARK[0] for c in costs]
        axes.barh(range(len(costs)), [1e3 * max(cost.kl, 0) for cost in costs], color=colors)
        axes.set_yticks(range(len(costs)), [_short(cost.name) for cost in costs], fontsize=6)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set_xlabel("KL(float || rounded) that rounding it adds, thousandths of a nat a token")
        kept, higher_precision = (
            sum(cost.kept for cost in costs),
            sum(cost.higher_precision for cost in costs),
        )
        axes.set_title(
            f"{len(costs)} products, {kept} kept in floating point (orange), {higher_precision} "
            "in a higher precision "
            "(blue)"
        )


def _short(name: str) -> str:
    """A weight's name; of packed ones the first, and how many more."""
    first, *more = name.split("+")
    return f"{first} + {len(more)}" if more else first
