"""Plot what quantizing each weight costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgetie.report.plots import DARK, figure_for

if TYPE_CHECKING:
    from edgetie.quantize.mixed_precision.sensitivity import Cost

_COLORS = {"SCHEME": DARK[0], "HIGHER": DARK[2], "FLOAT": DARK[1]}


def plot_costs(costs: Sequence[Cost], path: Path) -> None:
    """Draw the divergence that quantizing each weight adds, in graph order, and its precision.

    Args:
        costs: of :class:`edgetie.quantize.QuantizeReport`.
        path: where; the suffix chooses the format, e.g. ``.png``.

    Raises:
        EdgetieError: if matplotlib is not installed.
        BundleError: if the file cannot be written.
    """
    with figure_for(path, width=9, height=max(2.5, 1 + 0.16 * len(costs))) as figure:
        axes = figure.subplots()
        colors = [_COLORS[cost.precision.name] for cost in costs]
        axes.barh(range(len(costs)), [1e3 * max(cost.kl, 0) for cost in costs], color=colors)
        axes.set_yticks(range(len(costs)), [_short(cost.name) for cost in costs], fontsize=6)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set_xlabel("KL(float || quantized) that it adds, thousandths of a nat a token")
        counts = Counter(cost.precision.name for cost in costs)
        axes.set_title(
            f"{len(costs)} weights, {counts['FLOAT']} in floating point (orange), "
            f"{counts['HIGHER']} in a higher precision (blue)"
        )


def _short(name: str) -> str:
    """Shorten the name of packed weights to the first one, and how many more there are."""
    first, *more = name.split("+")
    return f"{first} + {len(more)}" if more else first
