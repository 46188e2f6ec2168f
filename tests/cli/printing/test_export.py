"""The printed report of an export."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgetie.export.comparison import Agreement
from edgetie.ties.groups import TieGroup, Use
from edgetie_cli.printing.export import describe_uses, print_export, ties_table


def group() -> TieGroup:
    uses = (
        Use("MatMul", "a", 1, False), Use("MatMul", "b", 1, False), Use("Gemm", "c", 1, True),
    )  # fmt: skip
    return TieGroup("table", (512, 64), "FLOAT", 131072, uses, ("a.weight", "b.weight"))


def test_equal_uses_are_counted() -> None:
    assert describe_uses(group()) == "2 × MatMul[1], Gemm[1]ᵀ"


def test_a_row_for_each_tied_weight() -> None:
    table = ties_table([group()])
    assert table.row_count == 1
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == [
        "a.weight = b.weight", "512×64", "0.1 MB FLOAT", "2 × MatMul[1], Gemm[1]ᵀ",
    ]  # fmt: skip


def report(ties: list[TieGroup], unused: list[str]) -> SimpleNamespace:
    manifest = SimpleNamespace(
        ties=ties,
        unique_parameters=1_000_000,
        source={"unused": unused},
        fusion={"operators": {"GroupQueryAttention": 2}, "unfused": ["attention: odd heads"]},
        quantization={},
        adapters={},
    )
    return SimpleNamespace(
        manifest=manifest,
        bundle=SimpleNamespace(directory="bundle"),
        seconds={"trace": 1.5, "write": 0.5},
        agreement=Agreement(1e-6, 2e-6, 3e-6, float(np.float32(1))),
        weights_bytes=4_000_000,
        unique_parameter_bytes=4_000_000,
        peak_bytes=1_000_000,
    )


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    print_export(report([group()], ["a", "b", "c", "d"]))
    output = capsys.readouterr().out
    for text in (
        "4.0 MB on disk, 1.000 × the 1.0 M unique parameters",
        "not used     4 weights of its files: a, b, c, …",
        "GroupQueryAttention 2",
        "not fused    attention: odd heads",
        "logit error  3.0e-06 of the largest logit",
        "time         2.0 s (trace 1.5, write 0.5), peak 1 MB",
    ):
        assert text in output
    assert "kept" not in output
    without_ties = report([], [])
    without_ties.manifest.quantization = {"types": {"Q4_1": 210, "Q8_0": 1}}
    print_export(without_ties)
    output = capsys.readouterr().out
    assert "no tied weights" in output
    assert "kept         quantized as they are: 210 Q4_1, 1 Q8_0" in output
