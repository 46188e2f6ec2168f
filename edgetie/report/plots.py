"""Pictures of a latency report, and of what quantizing each weight costs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from edgetie.bundle.atomic import atomic_files
from edgetie.errors import BundleError, EdgetieError
from edgetie.harness.environment import environment_line
from edgetie.report.tables import models_of, ran_by, titles
from edgetie.ties.groups import JOINT

if TYPE_CHECKING:
    from edgetie.harness.latency.bench import LatencyReport
    from edgetie.quantize.mixed_precision.sensitivity import Cost

_DARK = ("#0f766e", "#b45309", "#1d4ed8", "#be185d", "#4d7c0f", "#6d28d9")
_LIGHT = ("#7cc6bf", "#f0c089", "#a3bdf7", "#f3a8cb", "#c3dd93", "#c9b3f5")
_PRECISION_COLORS = {"SCHEME": _DARK[0], "HIGHER": _DARK[2], "FLOAT": _DARK[1]}
_INK = "#1f2933"
_FAINT = "#e3e7eb"

_STYLE = {
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "legend.frameon": False,
    "text.parse_math": False,  # a name may contain $
}


def formats() -> set[str]:
    """Return the suffixes of image files that can be drawn.

    Raises:
        EdgetieError: if matplotlib, which only plots need, is not installed.
    """
    if find_spec("matplotlib") is None:
        raise EdgetieError(
            'plots need matplotlib; in the checkout of edgetie run: pip install ".[plot]"'
        )
    from matplotlib.backend_bases import FigureCanvasBase

    return {f".{name}" for name in FigureCanvasBase.filetypes if name != "pgf"}  # it runs LaTeX


def plot_latency(report: LatencyReport, target: Path | BinaryIO) -> None:
    """Draw a report, and the one it was measured against: latency, memory over time, comparisons.

    Args:
        report: the report. Its memory over time is empty without a timeline.
        target: a file, whose suffix chooses the format, or a stream, which gets ``.png``.

    Raises:
        EdgetieError: if matplotlib is not installed, or the file cannot be written.
    """
    models = models_of(report)[: len(_DARK)]
    with _figure(target, width=15, height=4.8) as figure:
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.06)
        left, middle, right = figure.subfigures(1, 3, width_ratios=(1.05, 1.05, 0.9))
        draw = _draw_positions if report.new_tokens else _draw_passes
        draw(left.subplots(), models)
        _draw_memory(middle, models)
        _draw_bars(right, models)
        _draw_title(figure, report)


def plot_sweep(report: LatencyReport, target: Path | BinaryIO) -> None:
    """Draw how speeds change with the prompt's length, a line for each batch and model.

    Raises:
        EdgetieError: if matplotlib is not installed, or the file cannot be written.
    """
    models = models_of(report)[: len(_DARK)]
    with _figure(target, width=12, height=4) as figure:
        fields = {"Prefill": "prefill_tokens_per_second"}
        if report.new_tokens:
            fields["Decode"] = "decode_tokens_per_second"
        panels = figure.subplots(1, len(fields), squeeze=False)[0]
        for axes, (name, field) in zip(panels, fields.items(), strict=True):
            for color, model, label in zip(_DARK, models, _labels(models), strict=False):
                points = [model, *model.sweep] if model.latency_valid else []
                for index, batch in enumerate(sorted({point.batch for point in points})):
                    line = sorted((point.prompt_tokens, getattr(point, field))
                                  for point in points if point.batch == batch)  # fmt: skip
                    axes.plot(
                        *zip(*line, strict=True),
                        color=color,
                        marker="os^Dv"[index % 5],
                        ls=("-", "--", ":", "-.")[index % 4],
                        label=f"{label}, batch {batch}",
                    )
            _label(axes, name, "tokens of the prompt", "tokens/s")
        _draw_title(figure, report)


def plot_costs(costs: Sequence[Cost], path: Path) -> None:
    """Draw the divergence that quantizing each weight adds, in graph order, and its precision.

    Args:
        costs: of :class:`edgetie.quantize.QuantizeReport`.
        path: a file, whose suffix chooses the format.

    Raises:
        EdgetieError: if matplotlib is not installed, or the file cannot be written.
    """
    with _figure(path, width=9, height=max(2.5, 1 + 0.16 * len(costs))) as figure:
        axes = figure.subplots()
        colors = [_PRECISION_COLORS[cost.precision.name] for cost in costs]
        axes.barh(range(len(costs)), [1e3 * max(cost.kl, 0) for cost in costs], color=colors)
        axes.set_yticks(range(len(costs)), [_first_name(cost.name) for cost in costs], fontsize=6)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set_xlabel("KL(float || quantized) that it adds, thousandths of a nat a token")
        counts = Counter(cost.precision.name for cost in costs)
        axes.set_title(
            f"{len(costs)} weights, {counts['FLOAT']} in floating point (orange), "
            f"{counts['HIGHER']} in a higher precision (blue)"
        )


@contextmanager
def _figure(target: Path | BinaryIO, *, width: float, height: float) -> Iterator[Any]:
    """Yield an empty figure of a size in inches; save it when it is drawn, or no file at all."""
    formats()  # raises without matplotlib
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a character that the font lacks is drawn as a box
        figure: Any = Figure(figsize=(width, height), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        if not isinstance(target, Path):
            figure.savefig(target, format="png")
            return
        path = target.resolve()
        with atomic_files(path, force=True) as folder:
            try:
                figure.savefig(folder / path.name, format=target.suffix.lower().lstrip("."))
            except ValueError as error:
                raise BundleError(f"{target}: cannot be drawn ({error})") from error


def _draw_title(figure: Any, report: LatencyReport) -> None:
    new = f", {report.new_tokens} new tokens" if report.new_tokens else ""
    text = (
        f"{ran_by(report)}, {report.threads} threads · prompt {report.prompt_tokens}{new} · "
        f"{report.repeat} runs"
    )
    if not report.latency_valid:
        text += f" · NOT VALID: {report.latency_problem}"
    text += f"\n{environment_line(report.environment)}"
    figure.suptitle(text, x=0.012, ha="left", fontsize=10, color="#52606d")


def _label(axes: Any, title: str, xlabel: str, ylabel: str) -> None:
    """Label axes whose lines start at zero, and leave room for a legend."""
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, ylim=(0, axes.get_ylim()[1] * 1.12))
    if axes.lines:
        axes.legend(loc="upper left", ncols=2, fontsize=8.5)


def _labels(models: list[LatencyReport]) -> list[str]:
    """Return titles for a legend, which leaves out those that begin with an underscore."""
    return [f" {name}" if name.startswith("_") else name for name in titles(models)]


def _draw_positions(axes: Any, models: list[LatencyReport]) -> None:
    for index, (model, label) in enumerate(zip(models, _labels(models), strict=True)):
        if not model.latency_valid:
            continue
        times = np.array([run.step_ms for run in model.runs])
        positions = model.prompt_tokens + 1 + np.arange(times.shape[1])
        low, high = times.min(axis=0), times.max(axis=0)
        axes.fill_between(positions, low, high, color=_LIGHT[index], alpha=0.35, lw=0)
        axes.plot(positions, np.median(times, axis=0), color=_DARK[index], lw=1.8, label=label)
    axes.margins(x=0.01)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _label(axes, "Latency of a token", "position in the sequence", "ms")


def _draw_passes(axes: Any, models: list[LatencyReport]) -> None:
    """Draw the time of a forward pass over its tokens, of batches as large as the first one."""
    for index, (model, label) in enumerate(zip(models, _labels(models), strict=True)):
        points = [each for each in (model, *model.sweep) if each.batch == model.batch]
        line = sorted((each.prompt_tokens, each.prefill_ms) for each in points)
        if model.latency_valid:
            axes.plot(*zip(*line, strict=True), color=_DARK[index], marker="o", label=label)
    _label(axes, "Latency of a forward pass", "tokens", "ms")


def _draw_memory(figure: Any, models: list[LatencyReport]) -> None:
    panels = figure.subplots(len(models), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for index, (axes, model) in enumerate(zip(panels, models, strict=True)):
        axes.set_ylabel("MB over imports")
        if model.sampled is None:
            continue
        loaded = model.sampled.load_seconds
        seconds, *memory = np.array(model.sampled.timeline).T
        axes.stackplot(
            seconds,
            np.maximum(memory, 0) / 1e6,
            labels=(f"{_labels(models)[index]}, private", "file-mapped"),
            colors=(_DARK[index], _LIGHT[index]),
        )
        axes.axvline(loaded, ymax=0.8, color=_INK, lw=1, ls=":")
        top = (loaded, np.sum(memory, axis=0).max() / 1e6)
        axes.annotate("loaded", top, xytext=(4, 4), textcoords="offset points", fontsize=8.5)
        axes.margins(x=0, y=0.45)
        axes.legend(loc="upper left", ncols=2, fontsize=8.5)
    panels[0].set_title("Memory over time")
    panels[-1].set_xlabel("seconds")


def _draw_bars(figure: Any, models: list[LatencyReport]) -> None:
    bars: dict[str, tuple[str, Callable[[LatencyReport], list[float]]]] = {
        "files": ("MB", lambda m: [m.file_bytes / 1e6]),
        "memory": ("MB", lambda m: [m.anonymous_bytes / 1e6, m.file_mapped_bytes / 1e6]),
        "prefill": ("tokens/s", lambda m: [m.prefill_tokens_per_second] * m.latency_valid),
    }
    if models[0].new_tokens:
        bars["decode"] = ("tokens/s", lambda m: [m.decode_tokens_per_second or 0] * m.latency_valid)
    panels = figure.subplots(len(bars), 1)
    for axes, (name, (unit, values)) in zip(panels, bars.items(), strict=True):
        longest = max(sum(values(model)) for model in models) or 1
        for index, model in enumerate(models):
            end = 0.0
            for value, color in zip(values(model), (_DARK[index], _LIGHT[index]), strict=False):
                axes.barh(index, value, left=end, color=color, height=0.72)
                end += value
            text = f"{end:,.1f} {unit}" if values(model) else "not measured"
            axes.text(end + longest * 0.02, index, text, va="center")
        axes.set(xlim=(0, longest * 1.4), ylim=(len(models) - 0.2, -0.8))
        axes.set_yticks(range(len(models)), titles(models))
        axes.grid(False)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(name, fontsize=9.5, fontweight="normal", pad=3)
    figure.suptitle("Size, memory, speed", x=0.02, ha="left", fontsize=11, fontweight="bold")


def _first_name(name: str) -> str:
    """Shorten the name of packed weights to the first one, and how many more there are."""
    first, *more = name.split(JOINT)
    return f"{first} + {len(more)}" if more else first
