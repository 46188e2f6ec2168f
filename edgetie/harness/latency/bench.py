"""Load time, latency and memory of a bundle, alone, beside another model, on several providers.

Every run is a fresh process (:mod:`worker`). Models, providers and lengths take
turns run by run, so that all meet the same state of the machine; results are medians over the runs.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.errors import EdgetieError
from edgetie.harness.accuracy.metrics import Interval, median_interval
from edgetie.harness.accuracy.thresholds import precision_of
from edgetie.harness.latency.worker import Job, Run
from edgetie.harness.ties.inspect import copies_in_memory
from edgetie.harness.ties.tie_status import TieStatus, tie_status
from edgetie.progress import Progress, Stages
from edgetie.providers.environments import ask, environment_of
from edgetie.providers.registry import find

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


_SPEEDS = ("prefill_tokens_per_second", "decode_tokens_per_second")


@dataclass
class LatencyReport:
    """What :func:`bench_model` measured. Values are medians over the runs unless said otherwise.

    Attributes:
        model: what was measured.
        precision: of its weights.
        parameters: weights, each shared one counted once; ``None`` if there is no manifest.
        provider, threads: where it ran, on how many intra-op threads.
        prompt_tokens, new_tokens, batch, repeat: the protocol: so many tokens read, generated, rows
            of them, and runs; a model that hears reads noise besides, an encoder-decoder one only
            those tokens that its decoder starts with.
        load_seconds: opening the session in a process that has only imported.
        first_run_ms: the session's first prefill.
        encode_ms: the encoder alone; ``None`` where there is none.
        prefill_ms: the time to the first token (TTFT), that of the encoder included, the session
            warm and its cache empty.
        prefill_tokens_per_second: tokens of all prompts over that time.
        decode_tokens_per_second: from the second token on: ``new_tokens - 1`` of every row over
            their time.
        latency_ms: ``p50``, ``p90`` and ``p99`` of single tokens from the second on, all runs.
        baseline_rss_bytes: resident memory after imports, before loading.
        rss_bytes, anonymous_bytes, file_mapped_bytes: resident at the last token, the cache
            alive, OVER the baseline: private pages, and pages of mapped files the kernel can drop.
        peak_rss_bytes: the largest resident size from start to last token, over the baseline.
        file_bytes: every file of the directory given; of an ``.onnx`` file, it and its data.
        nodes_per_provider: nodes of ONNX Runtime's optimized graph, by provider.
        elsewhere: by operator, those that run elsewhere than on ``provider``.
        latency_valid: false where the hardware is emulated or simulated, see
            :mod:`edgetie.providers.environment`; speeds then say nothing.
        latency_problem: why not.
        ties: whether each tied weight is stored once in the file.
        copies_in_memory: of the largest tied weight, in a session of this provider, measured;
            ``None`` where there is none or it cannot be.
        confidence: by field, where the true median lies, and how surely (``level``); from the order
            of the runs alone (:func:`edgetie.harness.accuracy.metrics.median_interval`).
        spread: smallest and largest value over the runs, by field.
        deviation: sample standard deviation over the runs of both tokens per second.
        runs: the single runs.
        sampled: one more run with memory over time, whose latencies do not count; if asked for.
        sweep: the same with other prompt lengths and batches.
        others: the same on further providers.
        against: the same of the other model.
        ratios: this model's value over the other's, by field; without times where either is not
            valid.
    """

    model: str
    precision: str
    parameters: int | None
    provider: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    batch: int
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
    fallback_nodes: dict[str, int]
    latency_valid: bool
    latency_problem: str | None
    ties: TieStatus
    copies_in_memory: int | None
    confidence: dict[str, Interval]
    spread: dict[str, tuple[float, float]]
    deviation: dict[str, float]
    runs: list[Run] = field(repr=False)
    sampled: Run | None = field(default=None, repr=False)
    sweep: list[LatencyReport] = field(default_factory=list)
    others: list[LatencyReport] = field(default_factory=list)
    against: LatencyReport | None = None
    ratios: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything but the single runs."""
        data = asdict(replace(self, runs=[], sampled=None, sweep=[], others=[], against=None))
        for name in ("runs", "sampled"):
            del data[name]
        for name in ("sweep", "others"):
            data[name] = [report.to_dict() for report in getattr(self, name)]
        data["against"] = self.against.to_dict() if self.against else None
        return data


def bench_model(
    bundle: str | Path,
    *,
    provider: str | Sequence[str] = "cpu",
    prompt_tokens: int | Sequence[int] = 128,
    new_tokens: int = 64,
    batch: int | Sequence[int] = 1,
    threads: int | None = None,
    repeat: int = 5,
    against: str | Path | None = None,
    strict: bool = False,
    timeline: bool = False,
    progress: Progress | None = None,
) -> LatencyReport:
    """Measure a model, and others in turn with it.

    Args:
        bundle: a bundle, a directory with one ONNX decoder, or an ``.onnx`` file.
        provider: execution providers; the report is of the first one, with the others in it. One
            that this onnxruntime lacks runs in an environment of its own
            (:mod:`edgetie.providers.environments`).
        prompt_tokens: tokens of the prompt, drawn at random with a fixed seed; of several lengths,
            the first is the report's and the others are its ``sweep``.
        new_tokens: tokens to generate greedily, at least 2; end tokens do not stop it.
        batch: prompts at a time; of several numbers, the first is the report's.
        threads: intra-op threads; ``None`` takes every physical core.
        repeat: runs of each model.
        against: another model, of any of the three kinds.
        strict: fail where a provider leaves nodes to another one.
        timeline: add a run of each that records memory over time.
        progress: told about each run.

    Raises:
        BundleError: if a model cannot be read, or its process ended without a result.
        ProviderError: if a provider is unknown, absent or does not take the model. Nothing is ever
            measured on another one instead.
        EdgetieError: if a number is too small, or one of the lists empty.
    """
    progress = progress or Stages()
    for name, given, least in (
        ("prompt_tokens", prompt_tokens, 1),
        ("new_tokens", new_tokens, 2),
        ("batch", batch, 1),
        ("repeat", repeat, 1),
    ):
        if min(_several(given), default=0) < least:
            raise EdgetieError(f"{name} {given}: must be {least} or more")
    providers = [find(name) for name in _several(provider)]
    if not providers:
        raise EdgetieError("provider: name at least one")
    for row in providers:
        environment_of(row)  # raises where there is none
    paths = [Path(path) for path in (bundle, against) if path is not None]
    opened = [open_bundle(path) for path in paths]
    settings = list(itertools.product(_several(prompt_tokens), _several(batch)))

    progress.stage("Checking ties")
    places = list(itertools.product(range(len(paths)), providers))
    checked = [tie_status(each) for each in opened]
    copies = [copies_in_memory(opened[index], row.name) for index, row in places]
    progress.stage("Measuring")
    jobs = [
        Job(str(paths[index]), row.name, threads, prompt, new_tokens, rows, strict)
        for index, row in places
        for prompt, rows in settings
    ]
    runs: list[list[Run]] = [[] for _ in jobs]
    for index in range(repeat * len(jobs)):
        progress.advance(index, repeat * len(jobs))
        turn = index % len(jobs)
        runs[turn].append(run_worker(jobs[turn]))
    first = range(0, len(jobs), len(settings))  # of each place
    sampled: dict[int, Run] = {}
    if timeline:
        progress.stage("Recording memory")
        sampled = {turn: run_worker(replace(jobs[turn], sample_memory=True)) for turn in first}

    reports = []
    for turn, (index, _), held in zip(first, places, copies, strict=True):
        each = [
            _summarize(opened[index], jobs[at], runs[at], checked[index], held, sampled.get(at))
            for at in range(turn, turn + len(settings))
        ]
        each[0].sweep = each[1:]
        reports.append(each[0])
    mine, theirs = reports[: len(providers)], reports[len(providers) :]
    report = mine[0]
    report.others = mine[1:]
    if theirs:
        report.against = theirs[0]
        report.against.others = theirs[1:]
        timed = report.latency_valid and report.against.latency_valid
        report.ratios = {
            name: getattr(report, name) / getattr(theirs[0], name)
            for name in _RATIOS
            if getattr(theirs[0], name) and (timed or name.endswith("_bytes"))
        }
    return report


T = TypeVar("T", str, int)


def _several(given: T | Sequence[T]) -> list[T]:
    return [given] if isinstance(given, (str, int)) else list(given)


def run_worker(job: Job) -> Run:
    """Measure once in a fresh process.

    Raises:
        EdgetieError: what the process reported.
        BundleError: if it ended without reporting anything.
    """
    return Run(**ask(job.provider, "edgetie.harness.latency.worker", asdict(job), job.path))


def _values(run: Run, batch: int) -> dict[str, float]:
    """One run's scalar results, by field name."""
    sizes = ("baseline_rss", "rss", "anonymous", "file_mapped", "peak_rss")
    return {
        "load_seconds": run.load_seconds,
        "first_run_ms": run.first_run_ms,
        "prefill_ms": run.prefill_ms,
        "prefill_tokens_per_second": batch * run.prompt_tokens / run.prefill_ms * 1000,
        "decode_tokens_per_second": batch * len(run.step_ms) / sum(run.step_ms) * 1000,
        **{f"{name}_bytes": getattr(run, f"{name}_bytes") for name in sizes},
    }


def _summarize(
    bundle: Bundle,
    job: Job,
    runs: list[Run],
    ties: TieStatus,
    copies: int | None,
    sampled: Run | None,
) -> LatencyReport:
    each = [_values(run, job.batch) for run in runs]
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
        model=job.path,
        precision=precision_of(bundle),
        parameters=bundle.manifest.unique_parameters or None,
        provider=job.provider,
        threads=runs[0].threads,
        prompt_tokens=runs[0].prompt_tokens,
        new_tokens=job.new_tokens,
        batch=job.batch,
        repeat=len(runs),
        **medians,
        encode_ms=statistics.median(encoded) if encoded else None,
        latency_ms={"p50": p50, "p90": p90, "p99": p99},
        file_bytes=_file_bytes(Path(job.path), bundle),
        nodes_per_provider=runs[0].nodes_per_provider,
        fallback_nodes=runs[0].fallback_nodes,
        latency_valid=runs[0].latency_problem is None,
        latency_problem=runs[0].latency_problem,
        ties=ties,
        copies_in_memory=copies,
        confidence={name: median_interval(columns[name]) for name in _SPEEDS},
        spread={name: (min(column), max(column)) for name, column in columns.items()},
        deviation={
            name: statistics.stdev(columns[name]) if len(runs) > 1 else 0.0 for name in _SPEEDS
        },
        runs=runs,
        sampled=sampled,
    )


def _file_bytes(path: Path, bundle: Bundle) -> int:
    if not path.is_dir():
        return bundle.file_bytes
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
