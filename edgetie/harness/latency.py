"""Load time, latency and memory of a bundle, alone or beside another model.

Every run is a fresh process (:mod:`edgetie.harness.worker`). Two models take turns run by run, so
that both meet the same state of the machine; results are medians over the runs.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgetie.bundle import Bundle, open_bundle
from edgetie.harness.environments import ask, environment_of
from edgetie.harness.proof import TieStatus, tie_status
from edgetie.harness.thresholds import precision_of
from edgetie.harness.worker import Job, Run
from edgetie.report.progress import Progress, Stages
from edgetie.runtime.providers import find

_RATIOS = (
    "load_seconds",
    "first_run_ms",
    "prefill_ms",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "rss_bytes",
    "anonymous_bytes",
    "peak_rss_bytes",
    "file_bytes",
)


@dataclass
class LatencyReport:
    """What :func:`bench` measured. All values are medians over the runs unless said otherwise.

    Attributes:
        model: what was measured.
        precision: of its weights.
        parameters: weights, each shared one counted once; ``None`` if there is no manifest.
        provider, threads: where it ran, on how many intra-op threads.
        prompt_tokens, new_tokens, repeat: the protocol: so many tokens read, generated, and runs;
            a model that hears reads noise besides, an encoder-decoder one only those tokens that
            its decoder starts with.
        load_seconds: opening the session in a process that has only imported.
        first_run_ms: the session's first prefill.
        encode_ms: the encoder alone; ``None`` where there is none.
        prefill_ms: the time to the first token (TTFT), that of the encoder included, the session
            warm and its cache empty.
        prefill_tokens_per_second: ``prompt_tokens`` over that time.
        decode_tokens_per_second: from the second token on: ``new_tokens - 1`` over their time.
        latency_ms: ``p50``, ``p90`` and ``p99`` of single tokens from the second on, all runs.
        baseline_rss_bytes: resident memory after imports, before loading.
        rss_bytes, anonymous_bytes, file_mapped_bytes: resident at the last token, the cache
            alive, OVER the baseline: private pages, and pages of mapped files the kernel can drop.
        peak_rss_bytes: the largest resident size from start to last token, over the baseline.
        file_bytes: every file of the directory given; of an ``.onnx`` file, it and its data.
        nodes_per_provider: nodes of ONNX Runtime's optimized graph, by provider.
        latency_valid: false where the hardware is emulated or simulated, see
            :mod:`edgetie.harness.environment`; speeds then say nothing.
        latency_problem: why not.
        ties: whether each tied weight is stored once in the file.
        spread: smallest and largest value over the runs, by field.
        deviation: sample standard deviation over the runs of both tokens per second.
        runs: the single runs.
        sampled: one more run with memory over time, whose latencies do not count; if asked for.
        against: the same of the other model.
        ratios: this model's value over the other's, by field.
    """

    model: str
    precision: str
    parameters: int | None
    provider: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    repeat: int
    load_seconds: float
    first_run_ms: float
    encode_ms: float | None
    prefill_ms: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    latency_ms: dict[str, float]
    baseline_rss_bytes: int
    rss_bytes: int
    anonymous_bytes: int
    file_mapped_bytes: int
    peak_rss_bytes: int
    file_bytes: int
    nodes_per_provider: dict[str, int]
    latency_valid: bool
    latency_problem: str | None
    ties: TieStatus
    spread: dict[str, tuple[float, float]]
    deviation: dict[str, float]
    runs: list[Run] = field(repr=False)
    sampled: Run | None = field(default=None, repr=False)
    against: LatencyReport | None = None
    ratios: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything but the single runs."""
        data = asdict(self)
        for name in ("runs", "sampled"):
            del data[name]
        data["against"] = self.against.to_dict() if self.against else None
        return data


def bench(
    bundle: str | Path,
    *,
    provider: str = "cpu",
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    threads: int | None = None,
    repeat: int = 5,
    against: str | Path | None = None,
    timeline: bool = False,
    progress: Progress | None = None,
) -> LatencyReport:
    """Measure a model, and another one in turn with it.

    Args:
        bundle: a bundle, a directory with one ONNX decoder, or an ``.onnx`` file.
        provider: execution provider of both.
        prompt_tokens: tokens of the prompt, drawn at random with a fixed seed.
        new_tokens: tokens to generate greedily, at least 2; end tokens do not stop it.
        threads: intra-op threads; ``None`` takes every physical core.
        repeat: runs of each model.
        against: the other model, of any of the three kinds.
        timeline: add a run of each that records memory over time.
        progress: told about each run.

    Raises:
        BundleError: if a model cannot be read, or its process ended without a result.
        ProviderError: if the provider is unknown, absent or does not take the model. Nothing is
            ever measured on another one instead.
    """
    progress = progress or Stages()
    row = find(provider)
    environment_of(row)  # raises where there is none
    paths = [Path(path) for path in (bundle, against) if path is not None]
    opened = [open_bundle(path) for path in paths]
    jobs = [Job(str(path), row.name, threads, prompt_tokens, new_tokens) for path in paths]

    progress.stage("Checking ties")
    ties = [tie_status(each) for each in opened]
    progress.stage("Measuring")
    runs: list[list[Run]] = [[] for _ in jobs]
    for index in range(repeat * len(jobs)):
        progress.advance(index, repeat * len(jobs))
        turn = index % len(jobs)
        runs[turn].append(run_worker(jobs[turn]))
    sampled: list[Run | None] = [None for _ in jobs]
    if timeline:
        progress.stage("Recording memory")
        sampled = [run_worker(replace(job, sample_memory=True)) for job in jobs]

    reports = [
        _summarize(path, each, job, of_path, status, extra)
        for path, each, job, of_path, status, extra in zip(
            paths, opened, jobs, runs, ties, sampled, strict=True
        )
    ]
    report = reports[0]
    if against is not None:
        report.against = reports[1]
        report.ratios = {
            name: getattr(report, name) / getattr(reports[1], name)
            for name in _RATIOS
            if getattr(reports[1], name)
        }
    return report


def run_worker(job: Job) -> Run:
    """Measure once in a fresh process.

    Raises:
        EdgetieError: what the process reported.
        BundleError: if it ended without reporting anything.
    """
    return Run(**ask(job.provider, "edgetie.harness.worker", asdict(job), job.path))


def _values(run: Run) -> dict[str, float]:
    """One run's scalar results, by field name."""
    sizes = ("baseline_rss", "rss", "anonymous", "file_mapped", "peak_rss")
    return {
        "load_seconds": run.load_seconds,
        "first_run_ms": run.first_run_ms,
        "prefill_ms": run.prefill_ms,
        "prefill_tokens_per_second": run.prompt_tokens / run.prefill_ms * 1000,
        "decode_tokens_per_second": len(run.step_ms) / sum(run.step_ms) * 1000,
        **{f"{name}_bytes": getattr(run, f"{name}_bytes") for name in sizes},
    }


def _summarize(
    path: Path,
    bundle: Bundle,
    job: Job,
    runs: list[Run],
    ties: TieStatus,
    sampled: Run | None,
) -> LatencyReport:
    each = [_values(run) for run in runs]
    columns = {name: [values[name] for values in each] for name in each[0]}
    medians: dict[str, Any] = {
        name: int(statistics.median(column))
        if name.endswith("_bytes")
        else statistics.median(column)
        for name, column in columns.items()
    }
    encoded = [run.encode_ms for run in runs if run.encode_ms is not None]
    steps = np.concatenate([run.step_ms for run in runs])
    p50, p90, p99 = (float(value) for value in np.percentile(steps, (50, 90, 99)))
    return LatencyReport(
        model=str(path),
        precision=precision_of(bundle),
        parameters=bundle.manifest.unique_parameters if bundle.manifest else None,
        provider=job.provider,
        threads=runs[0].threads,
        prompt_tokens=runs[0].prompt_tokens,
        new_tokens=job.new_tokens,
        repeat=len(runs),
        **medians,
        encode_ms=statistics.median(encoded) if encoded else None,
        latency_ms={"p50": p50, "p90": p90, "p99": p99},
        file_bytes=_file_bytes(path, bundle),
        nodes_per_provider=runs[0].nodes_per_provider,
        latency_valid=runs[0].latency_problem is None,
        latency_problem=runs[0].latency_problem,
        ties=ties,
        spread={name: (min(column), max(column)) for name, column in columns.items()},
        deviation={
            name: statistics.stdev(columns[name]) if len(runs) > 1 else 0.0
            for name in ("prefill_tokens_per_second", "decode_tokens_per_second")
        },
        runs=runs,
        sampled=sampled,
    )


def _file_bytes(path: Path, bundle: Bundle) -> int:
    if not path.is_dir():
        return bundle.file_bytes
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
