"""Print what the quickstart will do, what it measured, and what to try next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetie.downloads import cache_directory, missing_downloads
from edgetie.harness.environment import environment_line
from edgetie.providers.placement import describe_placement
from edgetie.report.tables import MISSING, Table, plain_console, print_tables, verdict

if TYPE_CHECKING:
    from edgetie.harness.accuracy.check import AccuracyReport
    from edgetie.harness.latency.bench import LatencyReport
    from edgetie.harness.ties.inspect import Inspection
    from edgetie.quickstart import QuickstartReport

_MINUTES = 3
_TOKENS_PER_MINUTE = 1500
"""Of the demonstration model, on two slow cores."""


def announcement(model: str | None, accuracy_tokens: int) -> str:
    """Say what will be downloaded, and about how long everything takes on two cores."""
    if model is not None:
        return "Downloads only what the model itself needs. The time depends on its size."
    missing = [f"{package} ({size} MB)" for package, size in missing_downloads().items()]
    downloads = f"Downloads {' and '.join(missing)} once, into {cache_directory()}."
    minutes = _MINUTES + round(accuracy_tokens / _TOKENS_PER_MINUTE)
    return (
        f"{downloads if missing else 'Everything is downloaded already.'} "
        f"Takes up to {minutes} minutes on two slow cores{', plus the download' * bool(missing)}."
    )


def print_quickstart(report: QuickstartReport) -> None:
    """Print the generated answers, fp32 against int8, and the commands to try next."""
    console = plain_console()
    for question, answer in report.answers:
        console.print(f"\n{question}", style="bold")
        console.print(answer)
    accuracy, latency = report.accuracy, report.latency
    fp32, int8 = report.exported.bundle, report.quantized.bundle
    rows = [_row("size on disk", fp32.file_bytes / 1e6, int8.file_bytes / 1e6, "MB", "smaller")]
    if latency.against is not None:
        rows += _latency_rows(latency.against, latency)
    rows += _accuracy_rows(accuracy)
    error = report.exported.agreement.relative
    rows += [
        ["run by", _ran_by(report.inspected_fp32), _ran_by(report.inspected_int8), ""],
        ["largest logit error, fp32 against torch", f"{error:.1e}", "", ""],
        [
            "copies of the embedding (file, optimized, memory)",
            _copies(report.inspected_fp32),
            _copies(report.inspected_int8),
            "",
        ],
    ]
    name = report.exported.manifest.source["name"]
    console.print(f"\n{name}, {latency.threads} threads", style="bold")
    console.print(environment_line(accuracy.environment))
    print_tables(Table(["", ">fp32", ">int8", ">int8 is"], rows))
    console.print(f"\naccuracy {verdict(accuracy)}, on {accuracy.data}")
    console.print("\nTry next:", style="bold")
    commands = [
        (
            "accuracy on your text",
            f"check {int8.directory} --reference {fp32.directory} --text FILE",
        ),
        ("start an app", f"deploy {int8.directory} --for python --output app"),
        ("use your own model", "quickstart --model YOUR_MODEL --output mine"),
    ]
    if report.answers:
        commands.insert(
            0, ("let it write", f'generate {int8.directory} --prompt "Tell me a story."')
        )
    for purpose, command in commands:
        console.print(f"  {purpose:<22} edgetie {command}")


def _row(name: str, fp32: float, int8: float, unit: str, better: str) -> list[str]:
    """Compare two sizes or times, of which less is better."""
    digits = ".2f" if max(fp32, int8) < 10 else ".0f"
    ratio = f"{fp32 / int8:.1f} × {better}" if int8 > 0 else ""
    return [name, f"{fp32:{digits}} {unit}", f"{int8:{digits}} {unit}", ratio]


def _latency_rows(fp32: LatencyReport, int8: LatencyReport) -> list[list[str]]:
    prompt = f"time to read {int8.prompt_tokens} tokens"
    rows = [
        _row("memory in use", fp32.rss_bytes / 1e6, int8.rss_bytes / 1e6, "MB", "smaller"),
        _row("time to load", fp32.load_seconds, int8.load_seconds, "s", "faster"),
        _row(prompt, fp32.prefill_ms, int8.prefill_ms, "ms", "faster"),
    ]
    before, after = fp32.decode_tokens_per_second, int8.decode_tokens_per_second
    if before is not None and after is not None:
        speeds = f"{before:.1f} tokens/s", f"{after:.1f} tokens/s"
        rows.append(["text generation", *speeds, f"{after / before:.1f} × faster"])
    return rows


def _accuracy_rows(accuracy: AccuracyReport) -> list[list[str]]:
    increase, error = accuracy.perplexity_increase, accuracy.perplexity_increase_error
    agreement = f"{accuracy.top1_agreement:.1%} ± {accuracy.top1_agreement_error:.1%}"
    rows = [["same likeliest token as fp32", "", agreement, ""]]
    if accuracy.tokens:
        perplexities = f"{accuracy.reference_perplexity:.4g}", f"{accuracy.perplexity:.4g}"
        change = f"{increase:+.2%} ± {error:.2%}"
        rows.append([f"perplexity on {accuracy.tokens:,} tokens", *perplexities, change])
    return rows


def _ran_by(inspection: Inspection) -> str:
    return describe_placement(inspection.provider, inspection.nodes_per_provider)


def _copies(inspection: Inspection) -> str:
    if not inspection.ties:
        return "not tied"
    tie = inspection.ties[0]
    return f"{tie.file}, {tie.optimized}, {tie.memory if tie.memory is not None else MISSING}"
