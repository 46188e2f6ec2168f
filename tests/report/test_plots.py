"""Pictures: valid files of the format that their names end with, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from reports import ENVIRONMENT, latency_report, latency_run

from edgetie.errors import BundleError
from edgetie.report.plots import figure_for, formats, plot_latency, plot_sweep


def test_a_plot_names_the_machine_the_versions_and_the_date(tmp_path: Path) -> None:
    timeline = [(0.1, 1_000_000, 0), (0.6, 20_000_000, 5_000_000), (0.9, 20_000_000, 9_000_000)]
    report = latency_report(
        against=latency_report(model="models/fp32"),
        sampled=latency_run(timeline=timeline),
        runs=[latency_run(), latency_run(step_ms=[5.0, 6.0, 7.0])],
    )
    plot_latency(report, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text("utf-8")
    assert "<svg" in text
    for part in (ENVIRONMENT["processor"], "onnxruntime 1.24.1", ENVIRONMENT["date"], "fp32"):
        assert part in text  # as a comment beside the glyphs


def test_streams_are_png() -> None:
    picture = io.BytesIO()
    plot_latency(latency_report(), picture)
    assert picture.getvalue().startswith(b"\x89PNG")


def test_a_sweep_is_a_line_for_each_batch(tmp_path: Path) -> None:
    sweep = [latency_report(prompt_tokens=16), latency_report(batch=4)]
    plot_sweep(latency_report(sweep=sweep), tmp_path / "sweep.svg")
    text = (tmp_path / "sweep.svg").read_text("utf-8")
    assert "batch 1" in text
    assert "batch 4" in text


def test_latencies_that_mean_nothing_are_not_drawn(tmp_path: Path) -> None:
    report = latency_report(latency_valid=False, latency_problem="this process is emulated")
    plot_latency(report, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text("utf-8")
    assert "NOT VALID: this process is emulated" in text
    assert "not measured" in text


def test_a_format_that_nobody_draws_leaves_no_file(tmp_path: Path) -> None:
    assert {".png", ".svg", ".pdf"} <= formats()
    with (
        pytest.raises(BundleError, match="cannot be drawn"),
        figure_for(tmp_path / "plot.xyz", width=2, height=2),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
