"""The page of a report: everything in it, and nothing that a name could inject."""

from __future__ import annotations

from pathlib import Path

from reports import ENVIRONMENT, accuracy_report, latency_report

from edgetie.report.html import write_html


def test_a_page_has_tables_pictures_accuracy_and_the_machine(tmp_path: Path) -> None:
    report = latency_report(
        fallback_nodes={"Abs": 2}, sweep=[latency_report(prompt_tokens=16)], provider="openvino"
    )
    write_html(report, [accuracy_report()], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert page.count("<table>") == 3
    for part in (
        *ENVIRONMENT.values(), "prefill (TTFT)", "openvino leaves", "Accuracy against fp32",
        "failed: 1 limit broken", "<td class=right>97.00 % ± 1.00 %</td>",
    ):  # fmt: skip
        assert part in page


def test_names_are_escaped(tmp_path: Path) -> None:
    report = latency_report(
        model="models/<b>x", latency_valid=False, latency_problem="a & b do not count"
    )
    write_html(report, [], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<b>" not in page
    assert "&lt;b&gt;x" in page
    assert "speeds are not valid: a &amp; b do not count" in page
    assert "Accuracy" not in page
