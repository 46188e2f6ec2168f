"""The lines that ``edgetie tie`` prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgetie.harness.ties.equivalence import Equivalence
from edgetie.passes.merge_near_duplicates import NearCopy
from edgetie.repair import RepairReport
from edgetie.ties.groups import TieGroup, Use
from edgetie_cli.printing.repair import print_repair

USES = (Use("Gather", "lookup", 0, False), Use("Gemm", "head", 1, True))
REPORT = RepairReport(
    path=Path("fixed.onnx"),
    task=None,
    no_bundle=None,
    merged={"head": "table"},
    shared={"parts": "table"},
    near=(NearCopy("close", "table", 0.01, True),),
    merged_near=(),
    skipped=("other: is table, and an input or output",),
    ties=(TieGroup("table", (300, 48), "FLOAT", 57600, USES),),
    bytes_before=2_000_000,
    bytes_after=1_000_000,
    outputs=(Equivalence(True, 0.0, 0.0),),
    seconds={"read": 1.0, "write": 0.5},
)


def printed(report: RepairReport, capsys: pytest.CaptureFixture[str]) -> str:
    print_repair(report)
    return capsys.readouterr().out


def test_everything_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(REPORT, capsys)
    for line in (
        "merged       head into table",
        "shared       parts has the bytes of table",
        "near         close is table transposed but for 1.00% (not merged",
        "left alone   other: is table",
        "files        2.0 MB before, 1.0 MB after",
        "outputs      equal bit for bit",
        "time         1.5 s (read 1.0, write 0.5)",
        "file         fixed.onnx",
    ):
        assert line in text
    assert "no weight is stored twice" not in text


def test_long_lists_are_cut_and_differences_are_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    many = {f"copy{i}": "table" for i in range(12)}
    outputs = (Equivalence(False, 1e-3, 1e-4), Equivalence(False, 0.0, 0.0, "it does not run"))
    text = printed(replace(REPORT, merged=many, merged_near=("close",), outputs=outputs), capsys)
    assert text.count("merged       ") == 8
    assert "and 4 more; --json lists them" in text
    assert "1.00% (merged)" in text
    assert "differ by 1.0e-03, 1.0e-04 of the largest" in text
    assert "not compared: it does not run" in text


def test_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = replace(REPORT, merged={}, shared={}, near=(), ties=())
    assert "no weight is stored twice" in printed(nothing, capsys)
    assert "no weight" not in printed(replace(nothing, near=REPORT.near), capsys)


def test_bundles_and_files_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = replace(REPORT, path=Path("tied"), task="seq2seq-lm")
    assert "bundle       tied (seq2seq-lm)" in printed(bundle, capsys)
    text = printed(replace(REPORT, no_bundle="no decoder reads past_key_values"), capsys)
    assert "no bundle    no decoder reads past_key_values" in " ".join(text.split(" "))
