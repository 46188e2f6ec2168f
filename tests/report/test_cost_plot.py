"""A plot of costs is written, one bar for each weight."""

from __future__ import annotations

from pathlib import Path

from edgetie.quantize.mixed_precision.sensitivity import Cost, Precision
from edgetie.report.cost_plot import plot_costs


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
