"""Pictures: valid files of the format that their names end with, whole or not at all."""

from __future__ import annotations

import io
import resource
from pathlib import Path

import pytest
from reports import ENVIRONMENT, latency_report, latency_run
from rich.console import Console

from edgetie.errors import BundleError
from edgetie.quantize.mixed_precision.sensitivity import Cost, Precision
from edgetie.report.html import write_html
from edgetie.report.plots import _figure, formats, plot_costs, plot_latency, plot_sweep
from edgetie.report.tables import resource_table


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
        _figure(tmp_path / "plot.xyz", width=2, height=2),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    report = latency_report()
    plot_latency(report, tmp_path / "plot.png")
    before = (tmp_path / "plot.png").read_bytes()
    assert before.startswith(b"\x89PNG")
    with pytest.raises(BundleError, match="cannot be written"):
        plot_latency(report, tmp_path / "missing" / "plot.png")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        for write in (plot_latency, lambda report, path: write_html(report, [], path)):
            with pytest.raises(BundleError, match="no space left to write it, nothing was written"):
                write(report, tmp_path / "plot.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / "plot.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").touch(0o600)
    (tmp_path / "link.svg").symlink_to("real")
    plot_latency(latency_report(), tmp_path / "link.svg")
    assert "<svg" in (tmp_path / "real").read_text("utf-8")
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["a$b_$c", "_under", "模型", "[red]x"])
def test_names_of_any_kind(tmp_path: Path, name: str, recwarn: pytest.WarningsRecorder) -> None:
    model = f"models/{name}"
    report = latency_report(model=model, sweep=[latency_report(model=model, batch=2)])
    write_html(report, [], tmp_path / "report.html")
    assert name in (tmp_path / "report.html").read_text("utf-8")
    assert not recwarn.list
    with io.StringIO() as stream:
        Console(file=stream, width=200, color_system=None).print(resource_table(report).rich())
        assert name in stream.getvalue()


def test_costs_of_each_precision(tmp_path: Path) -> None:
    costs = [
        Cost("a+b+c", 1e-3, 4096, 128),
        Cost("d", -1e-5, 4096, 128, Precision.HIGHER),
        Cost("e", 5e-2, 4096, 0, Precision.FLOAT),
    ]
    plot_costs(costs, tmp_path / "costs.svg")
    text = (tmp_path / "costs.svg").read_text(encoding="utf-8")
    assert "a + 2" in text
    assert "3 weights, 1 in floating point (orange), 1 in a higher precision (blue)" in text
    plot_costs(costs, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")


def test_costs_as_json() -> None:
    assert Cost("e", 5e-2, 4096, 0, Precision.FLOAT).to_dict() == {
        "name": "e", "kl": 5e-2, "bytes": 4096, "finer_bytes": 0, "kept": True, "finer": False,
    }  # fmt: skip
