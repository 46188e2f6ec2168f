"""Load time, latency and memory of a bundle: alone, against another model, on several providers."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.errors import EdgetieError
from edgetie.harness.accuracy.metrics import Interval, median_interval
from edgetie.harness.accuracy.thresholds import precision_of
from edgetie.harness.environment import describe_environment
from edgetie.harness.latency.worker import Job, Measurement, Run
from edgetie.harness.ties.inspect import TieStatus, copies_in_memory, tie_status
from edgetie.progress import Progress, Stages
from edgetie.providers.environments import find_environment
from edgetie.providers.json_worker import ask_worker
from edgetie.providers.placement import resolve_provider
from edgetie.providers.registry import AUTO, find_provider
from edgetie.runtime.images.reading import read_image

_SPEEDS = ("prefill_tokens_per_second", "decode_tokens_per_second")
_SPECULATIVE = "speculative_tokens_per_second"
_SIZES = (
    "baseline_rss_bytes", "rss_bytes", "anonymous_bytes", "file_mapped_bytes", "peak_rss_bytes",
)  # fmt: skip
_TIMES = ("load_seconds", "first_run_ms", "prefill_ms")
_RATIOS = (
    *_TIMES,
    *_SPEEDS,
    _SPECULATIVE,
    "rss_bytes",
    "anonymous_bytes",
    "peak_rss_bytes",
    "file_bytes",
)


@dataclass(kw_only=True)
class LatencyReport(Measurement):
    """What :func:`bench_model` measured. Values are medians over the runs unless said otherwise.

    The values of :class:`~edgetie.harness.latency.worker.Measurement` are fields as well.

    Attributes:
        model, precision: path of the model, and precision of its weights.
        parameters: number of weights, each shared one counted once; ``None`` without a manifest.
        provider: execution provider that ran it; never ``auto``.
        new_tokens, batch, repeat: tokens generated, 0 for a masked language model; batch items;
            runs.
        prefill_tokens_per_second: tokens of all prompts over the time of the prefill.
        decode_tokens_per_second: from the second token on, of every batch item; ``None`` if the
            model generates none.
        speculative_tokens_per_second: decode with proposed tokens, of the same prompt; ``None`` if
            the session does not speculate.
        latency_ms: ``p50``, ``p90`` and ``p99`` of single tokens from the second on, all runs;
            empty if there are none.
        file_bytes: every file of the directory; of an ``.onnx`` file, it and its data.
        latency_valid: false if the hardware is emulated or simulated. Speeds then mean nothing.
        ties: whether each tied weight is stored once in the file.
        copies_in_memory: copies of the largest tied weight in a session of this provider,
            measured; ``None`` if there is none or it cannot be measured.
        confidence: an interval with the true median, and its level, by field
            (:func:`edgetie.harness.accuracy.metrics.median_interval`).
        spread: smallest and largest value over the runs, by field.
        deviation: sample standard deviation over the runs of both tokens per second.
        environment: processor, system, versions and date of the measurement.
        runs: the single runs.
        sampled: one more run with memory over time, if asked for. Its latencies do not count.
        sweep, others: reports with other prompt lengths and batches, and of further providers.
        against: report of the other model.
        ratios: this model's value over the other model's, by field; of times only if valid.
    """

    model: str
    precision: str
    parameters: int | None
    new_tokens: int
    batch: int
    repeat: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float | None
    speculative_tokens_per_second: float | None
    latency_ms: dict[str, float]
    file_bytes: int
    latency_valid: bool
    ties: TieStatus
    copies_in_memory: int | None
    confidence: dict[str, Interval]
    spread: dict[str, tuple[float, float]]
    deviation: dict[str, float]
    environment: dict[str, str]
    runs: list[Run] = field(repr=False)
    sampled: Run | None = field(default=None, repr=False)
    sweep: list[LatencyReport] = field(default_factory=list)
    others: list[LatencyReport] = field(default_factory=list)
    against: LatencyReport | None = None
    ratios: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types: everything but the single runs."""
        data = asdict(replace(self, runs=[], sampled=None, sweep=[], others=[], against=None))
        del data["runs"], data["sampled"]
        for name in ("sweep", "others"):
            data[name] = [report.to_dict() for report in getattr(self, name)]
        data["against"] = self.against.to_dict() if self.against else None
        return data


def bench_model(
    bundle: str | Path,
    *,
    provider: str | Sequence[str] = AUTO,
    prompt_tokens: int | Sequence[int] = 128,
    new_tokens: int = 64,
    batch: int | Sequence[int] = 1,
    image: str | Path | None = None,
    threads: int | None = None,
    repeat: int = 5,
    against: str | Path | None = None,
    strict: bool = False,
    timeline: bool = False,
    progress: Progress | None = None,
) -> LatencyReport:
    """Measure a model, and others in turn with it.

    Every run is a fresh process (:mod:`edgetie.harness.latency.worker`). Models, providers and
    lengths take turns run by run, so that all meet the same state of the machine.

    Args:
        bundle: a bundle, a directory with one ONNX decoder, or an ``.onnx`` file.
        provider: execution providers. The report is of the first one and contains the others.
            ``auto`` is edgetie's own if it is here and runs nodes of the model, otherwise ``cpu``.
            One that this onnxruntime lacks runs in a separate environment
            (:mod:`edgetie.providers.environments`).
        prompt_tokens: tokens of the prompt, drawn at random with a fixed seed. Of several lengths,
            the first is the report's and the others are its ``sweep``.
        new_tokens: tokens to generate greedily, at least 2. End tokens do not stop it. A masked
            language model generates none: its forward pass is the prefill.
        batch: prompts at a time. Of several numbers, the first is the report's.
        image: an image file that a model reads before the prompt, if it reads images. By default
            one is drawn.
        threads: intra-op threads; ``None`` takes every physical core.
        repeat: runs of each model.
        against: another model, of any of the three kinds.
        strict: fail if a provider leaves nodes to another one; ``auto`` may.
        timeline: add a run of each that records memory over time.
        progress: notified of each run.

    Raises:
        BundleError: if a model cannot be read, or its process ended without a result.
        ProviderError: if a provider is unknown, absent or does not take the model.
        ImageError: if the image cannot be read.
        EdgetieError: if a number is too small, or one of the lists empty.
    """
    progress = progress or Stages()
    for name, value, least in (
        ("prompt_tokens", prompt_tokens, 1),
        ("new_tokens", new_tokens, 2),
        ("batch", batch, 1),
        ("repeat", repeat, 1),
    ):
        if min(_as_list(value), default=0) < least:
            raise EdgetieError(f"must be {least} or more", parameter=name, value=value)
    providers = _as_list(provider)
    if not providers:
        raise EdgetieError("name at least one", parameter="provider")
    for each in providers:
        find_environment(find_provider(each))  # raises if there is none
    photo = None if image is None else str(Path(image).resolve())
    if photo is not None:
        read_image(photo)  # raises if it cannot be read
    bundles = [(path, open_bundle(path)) for path in (bundle, against) if path is not None]
    progress.stage("Checking ties")
    cases = [
        _Case(str(path), opened, each, ties, copies_in_memory(opened, each))
        for path, opened in bundles
        for ties in (tie_status(opened),)
        for each in providers
    ]
    settings = list(itertools.product(_as_list(prompt_tokens), _as_list(batch)))
    jobs = [
        Job(case.path, case.provider, threads, prompt, new_tokens, size, strict, image=photo)
        for case in cases
        for prompt, size in settings
    ]
    progress.stage("Measuring")
    runs: list[list[Run]] = [[] for _ in jobs]
    for index, (job, results) in enumerate(list(zip(jobs, runs, strict=True)) * repeat):
        progress.advance(index, repeat * len(jobs))
        results.append(run_worker(job))
    reports = []
    for index, case in enumerate(cases):
        group = slice(index * len(settings), (index + 1) * len(settings))
        report, *report.sweep = map(case.summarize, jobs[group], runs[group])
        reports.append(report)
    if timeline:
        progress.stage("Recording memory")
        for report, job in zip(reports, jobs[:: len(settings)], strict=True):
            report.sampled = run_worker(replace(job, sample_memory=True))
    report, *report.others = reports[: len(providers)]
    if against is not None:
        report.against, *report.against.others = reports[len(providers) :]
        report.ratios = _ratios(report, report.against)
    return report


def _as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, (str, int)) else list(value)


def _ratios(report: LatencyReport, other: LatencyReport) -> dict[str, float]:
    is_timed = report.latency_valid and other.latency_valid
    return {
        name: getattr(report, name) / getattr(other, name)
        for name in _RATIOS
        if getattr(report, name) is not None
        and getattr(other, name)
        and (is_timed or name.endswith("_bytes"))
    }


def run_worker(job: Job) -> Run:
    """Measure once in a fresh process; raises what :func:`ask_worker` raises."""
    run = Run(**ask_worker(job.provider, "edgetie.harness.latency.worker", asdict(job), job.path))
    run.provider = resolve_provider(job.provider, run.nodes_per_provider).name
    return run


@dataclass(frozen=True)
class _Case:
    """A model on a provider as it was asked for, and the state of its ties."""

    path: str
    bundle: Bundle
    provider: str
    ties: TieStatus
    copies_in_memory: int | None

    def summarize(self, job: Job, runs: list[Run]) -> LatencyReport:
        """Take medians over the runs of one job."""
        first = runs[0]
        columns = {name: [getattr(run, name) for run in runs] for name in (*_TIMES, *_SIZES)}
        prefill, decode = _SPEEDS
        columns[prefill] = [job.batch * r.prompt_tokens / r.prefill_ms * 1000 for r in runs]
        if first.step_ms:
            columns[decode] = [job.batch * len(r.step_ms) / sum(r.step_ms) * 1000 for r in runs]
        speeds = [name for name in _SPEEDS if name in columns]
        values: dict[str, Any] = {
            each.name: getattr(first, each.name) for each in fields(Measurement)
        }
        speculative = [1000 / ms for run in runs if (ms := run.speculative_ms)]
        if speculative:
            columns[_SPECULATIVE] = speculative
        values |= {decode: None, _SPECULATIVE: None}
        values |= {name: statistics.median(column) for name, column in columns.items()}
        values |= {name: int(values[name]) for name in _SIZES}
        if first.encode_ms is not None:
            values["encode_ms"] = statistics.median(run.encode_ms or 0 for run in runs)
        steps = np.concatenate([run.step_ms for run in runs])
        return LatencyReport(
            **values,
            model=self.path,
            precision=precision_of(self.bundle),
            parameters=self.bundle.manifest.unique_parameters or None,
            new_tokens=job.new_tokens if first.step_ms else 0,
            batch=job.batch,
            repeat=len(runs),
            latency_ms={
                f"p{rank}": float(np.percentile(steps, rank))
                for rank in (50, 90, 99)
                if first.step_ms
            },
            file_bytes=_file_bytes(Path(self.path), self.bundle),
            latency_valid=first.latency_problem is None,
            ties=self.ties,
            copies_in_memory=self.copies_in_memory,
            confidence={name: median_interval(columns[name]) for name in speeds},
            spread={name: (min(column), max(column)) for name, column in columns.items()},
            deviation={
                name: statistics.stdev(columns[name]) if len(runs) > 1 else 0.0 for name in speeds
            },
            environment=describe_environment(first.onnxruntime_version),
            runs=runs,
        )


def _file_bytes(path: Path, bundle: Bundle) -> int:
    files = path.rglob("*") if path.is_dir() else bundle.files
    return sum(file.stat().st_size for file in files if file.is_file())
