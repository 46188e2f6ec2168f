"""Tables: their cells, as Markdown and drawn, at any width."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from reports import accuracy_report, latency_report
from rich.console import Console

from edgetie.harness.accuracy.thresholds import Thresholds
from edgetie.harness.ties.inspect import TieStatus
from edgetie.report.tables import (
    MISSING,
    Table,
    accuracy_table,
    models_of,
    plain_table,
    print_drawn,
    ran_by,
    remarks,
    resource_table,
    short_name,
    speed_table,
    titles,
    verdict,
)


def drawn(table: object, width: int = 80) -> str:
    with io.StringIO() as stream:
        console = Console(file=stream, width=width, color_system=None, soft_wrap=True)
        console.print(table)
        return stream.getvalue()


def cells(table: Table) -> dict[str, list[str]]:
    return {name: values for name, *values in table.rows}


def test_markdown_is_aligned_and_escaped() -> None:
    assert Table(["a", ">b"], [["x|y", "1"], ["z", "22"]]).markdown() == (
        "| a    |   b |\n| ---- | --: |\n| x\\|y |   1 |\n| z    |  22 |"
    )


def test_names_wrap_and_are_never_cut_at_80_columns() -> None:
    name = "SmolLM2-135M-Instruct-with-a-name-that-does-not-end"
    report = latency_report(model=f"models/{name}", precision="int8")
    for table in (speed_table(report).rich(), resource_table(report).rich()):
        text = drawn(table)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80
    wrapped = plain_table("tied weight", "uses")
    wrapped.add_row("model.embed_tokens.weight" * 3, "Gather[0], MatMul[1]" * 3)
    text = drawn(wrapped)
    assert "…" not in text
    assert text.replace("\n", "").replace(" ", "").count("embed_tokens") >= 2


@pytest.mark.parametrize("width", [64, 80, 200])
def test_columns_become_narrower_between_words(width: int) -> None:
    table = plain_table("tied weight", "uses", "what it is")
    words = "model.embed_tokens.weight = lm_head.weight", "GatherBlockQuantized[0], Gemm[1]"
    table.add_row(*words, "8 bits by blocks, with zero points")
    with io.StringIO() as stream:
        print_drawn(Console(file=stream, width=width, color_system=None), table)
        text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert set(" ".join([*words, "8 bits by blocks, with zero points"]).split()) <= set(
        text.split()
    )


def test_accuracy_shows_values_limits_and_what_broke_them() -> None:
    table = accuracy_table(accuracy_report())
    assert table.columns == ["metric", ">value", ">limit", ""]
    rows = cells(table)
    assert rows["KL divergence, nats a token"] == ["1.00e-03", "≤ 2.00e-02", "ok"]
    assert rows["top-1 agreement"] == ["97.00 % ± 1.00 %", "≥ 98.00 %", "FAIL"]
    assert rows["perplexity increase"] == ["0.50 % ± 0.20 %", "", ""]
    assert rows["perplexity"] == ["20.1", "", ""]
    assert rows["greedy agreement (equal tokens of free-running answers)"] == ["80.00 %", "", ""]


def test_what_was_not_measured_is_left_out_unless_it_breaks_a_limit() -> None:
    nothing = dict.fromkeys(
        ("perplexity", "reference_perplexity", "perplexity_increase", "greedy_agreement"), math.nan
    )
    report = accuracy_report(**nothing, perplexity_increase_error=math.nan)
    text = accuracy_table(report).markdown()
    assert "top-1 agreement" in text
    assert not any(word in text for word in ("perplexity", "greedy", "nan"))
    failures = {"perplexity_increase": "perplexity increase unknown is above 0.003"}
    broken = cells(accuracy_table(replace(report, failures=failures)))
    assert broken["perplexity increase"] == [MISSING, "", "FAIL"]
    one = cells(accuracy_table(report, accuracy_report()))
    assert one["perplexity"][:2] == [MISSING, "20.1"]


def test_several_providers_are_columns_with_their_own_limits() -> None:
    other = accuracy_report(
        provider="openvino", thresholds=Thresholds(max_kl=0.03, min_top1=None), failures={}
    )
    table = accuracy_table(accuracy_report(), other)
    assert table.columns[1:3] == [">cpu", ">openvino"]
    rows = cells(table)
    assert rows["KL divergence, nats a token"][2] == "≤ 2.00e-02, 3.00e-02"
    assert rows["top-1 agreement"][2:] == ["≥ 98.00 %, none", "FAIL"]
    assert rows["nodes"][:2] == ["9 CPU", "9 CPU"]


def test_the_verdict_says_passed_or_failed() -> None:
    passed, failed = accuracy_report(failures={}), accuracy_report()
    assert verdict(passed) == "passed: every limit holds"
    assert verdict(failed) == "failed: 1 limit broken"
    other = accuracy_report(provider="openvino", failures={})
    assert verdict(failed, other) == "cpu: failed, openvino: passed"


def test_speeds_are_a_line_for_each_test_and_point_of_a_sweep() -> None:
    report = latency_report(sweep=[latency_report(prompt_tokens=32, batch=4)])
    table = speed_table(report)
    assert [row[5] for row in table.rows] == ["pp8", "tg4", "pp32 × 4", "tg4 × 4"]
    expected = ["int8", "147.0 MB", "134.5 M", "cpu", "2", "pp8", "800.0 ± 3.0"]
    assert table.rows[0] == expected
    emulated = speed_table(latency_report(latency_valid=False, latency_problem="emulated"))
    assert {row[-1] for row in emulated.rows} == {"not measured"}


def test_resources_of_two_models_and_their_ratio() -> None:
    other = latency_report(model="models/fp32", ties=TieStatus(0, None, ""), copies_in_memory=None)
    report = latency_report(against=other, ratios={"load_seconds": 0.5, "file_bytes": 0.25})
    table = resource_table(report)
    assert table.columns == ["", ">int8", ">fp32", ">ratio"]
    assert all(len(row) == 4 for row in table.rows)
    rows = cells(table)
    assert rows["provider"] == ["cpu (9 of 9 nodes)", "cpu (9 of 9 nodes)", ""]
    assert rows["load"] == ["0.50 s", "0.50 s", "0.50"]
    assert rows["files"] == ["147.0 MB", "147.0 MB", "0.25"]
    assert rows["its median lies in"] == ["190.0–210.0 (75%)"] * 2 + [""]
    assert rows["ties"] == ["intact", "none", ""]
    assert rows["copies in memory"] == ["1", MISSING, ""]
    assert "encode" not in rows
    emulated = cells(resource_table(latency_report(latency_valid=False)))
    assert emulated["load"] == emulated["token latency p50"] == [MISSING]
    assert emulated["memory, peak"] == ["40.0 MB"]


def test_proposed_tokens_have_lines() -> None:
    fast = latency_report(speculative_tokens_per_second=240.0, accepted_share=0.6)
    rows = cells(resource_table(fast))
    assert (rows["decode with proposals"], rows["proposals accepted"]) == (["240.0"], ["60%"])
    none = cells(resource_table(latency_report(speculative_tokens_per_second=240.0)))
    assert none["proposals accepted"] == [MISSING]
    assert "proposals accepted" not in cells(resource_table(latency_report()))


def test_an_encoder_has_a_line() -> None:
    assert cells(resource_table(latency_report(encode_ms=7.4)))["encode"] == ["7 ms"]


def test_nodes_of_a_provider_and_those_that_it_leaves() -> None:
    shared = {"CPUExecutionProvider": 2, "EdgetieExecutionProvider": 7}
    own = latency_report(provider="edgetie", nodes_per_provider=shared, fallback_nodes={"Abs": 2})
    assert ran_by(own, own, accuracy_report()) == "edgetie (7 of 9 nodes), cpu (9 of 9 nodes)"
    assert remarks(own) == [], "it shares a model with the CPU provider by design"
    nodes = {"CPUExecutionProvider": 2, "OpenVINOExecutionProvider": 7}
    other = latency_report(provider="openvino", nodes_per_provider=nodes, fallback_nodes={"Abs": 2})
    assert remarks(other) == ["int8: openvino leaves 2 of 9 nodes to others (Abs 2)"]


def test_models_are_told_apart() -> None:
    one, two = latency_report(model="v1/m"), latency_report(model="v2/m")
    one.against = two
    assert titles(models_of(one)) == ["v1/m", "v2/m"]
    report = latency_report(others=[latency_report(provider="openvino")])
    assert titles(models_of(report)) == ["int8 cpu", "int8 openvino"]
    assert short_name("x/model.onnx") == "x/model.onnx"
    assert short_name("/a/b/c/") == "c"
