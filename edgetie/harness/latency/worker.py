"""One measured run in a fresh process: a :class:`Job` as JSON on stdin, a :class:`Run` on stdout.

A second session in one process would find warm allocators and mapped files.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgetie.errors import BundleError, EdgetieError
from edgetie.harness.accuracy.samples import (
    Prompt,
    encoder_inputs,
    open_images,
    random_ids,
    token_inputs,
)
from edgetie.providers.emulation import latency_problem
from edgetie.providers.json_worker import reply
from edgetie.runtime.audio.embeddings import reads_audio
from edgetie.runtime.memory import read_memory, sample_memory
from edgetie.runtime.session import Session, onnxruntime_errors, open_session

_WARM_UP_TOKENS = 8
_PASSES = 9  # of a masked language model, which are short


@dataclass(frozen=True)
class Job:
    """What to measure. A timeline of the memory (``sample_memory``) disturbs the latencies."""

    path: str
    provider: str
    threads: int | None
    prompt_tokens: int
    new_tokens: int
    batch: int = 1
    strict: bool = False
    sample_memory: bool = False
    image: str | None = None


@dataclass(kw_only=True)
class Measurement:
    """What a run measures, and a report summarizes.

    Attributes:
        prompt_tokens: tokens read before the first new one. An audio model reads noise as well,
            a model that reads images one image. An
            encoder-decoder model reads only the tokens that its decoder starts with, a masked
            language model all of them at once.
        provider: execution provider that ran it; never ``auto``. In an environment of another
            provider, its name there.
        threads: intra-op threads.
        load_seconds: opening the session in a process that has only imported.
        first_run_ms: the session's first prefill.
        encode_ms: the encoder alone; ``None`` without one.
        prefill_ms: time to the first token (TTFT) including the encoder, with a warm session and
            an empty cache; of a masked language model, the median of some
            forward passes.
        baseline_rss_bytes: resident memory after imports, before loading.
        rss_bytes, anonymous_bytes, file_mapped_bytes: resident at the last token, OVER the
            baseline: all, private pages, and pages of mapped files that the kernel can drop.
        accepted_share: share of proposed tokens that were accepted; ``None`` if there were none.
        peak_rss_bytes: largest resident size from start to last token, over the baseline.
        nodes_per_provider: nodes of ONNX Runtime's optimized graph, by provider.
        fallback_nodes: nodes that run on another provider than ``provider``, by operator.
        latency_problem: why the latencies mean nothing, or ``None``.
    """

    prompt_tokens: int
    provider: str
    threads: int
    load_seconds: float
    first_run_ms: float
    encode_ms: float | None
    prefill_ms: float
    accepted_share: float | None
    baseline_rss_bytes: int
    rss_bytes: int
    anonymous_bytes: int
    file_mapped_bytes: int
    peak_rss_bytes: int
    nodes_per_provider: dict[str, int]
    fallback_nodes: dict[str, int]
    latency_problem: str | None


@dataclass(kw_only=True)
class Run(Measurement):
    """What one run measured.

    Attributes:
        step_ms: milliseconds of each token after the first, ``(new_tokens - 1,)``. Empty for a
            masked language model, which generates none.
        speculative_ms: milliseconds a token after the first with proposed tokens; ``None`` if the
            session does not speculate.
        onnxruntime_version: version of onnxruntime that ran the model.
        timeline: ``(seconds, anonymous, file-mapped)`` over the baseline, if sampled.
    """

    step_ms: list[float]
    speculative_ms: float | None
    onnxruntime_version: str
    timeline: list[tuple[float, int, int]] = field(default_factory=list)


def measure(job: Job) -> Run:
    """Measure in this process, which should have done nothing but import.

    Order: memory after imports (the baseline); opening the session; the first run, which pays for
    whatever ONNX Runtime left for it; a short generation, which does not count; the measured one,
    with an empty cache. Memory is read at its last token, the cache still alive.

    Raises:
        BundleError, ProviderError: if the model cannot be opened or takes fewer tokens than asked.
    """
    before = read_memory()
    sampler: Any = sample_memory() if job.sample_memory else nullcontext(())
    with sampler as samples:
        session = open_session(
            job.path, provider=job.provider, threads=job.threads, strict=job.strict
        )
        prompt = None
        try:
            if session.bundle.task == "masked-lm":
                tokens, encode_ms = job.prompt_tokens, None
                run = _forward_pass(session, _random_tokens(session, job))
                first_run_ms, _, *times = (_time(run) for _ in range(2 + _PASSES))
                prefill_ms = statistics.median(times)
                step_ms: list[float] = []
            else:
                prompt = _make_prompt(session, job)
                tokens = prompt.tokens
                first_run_ms = _generate(prompt, 1)[0]
                _generate(prompt, min(_WARM_UP_TOKENS, job.new_tokens))
                encode_ms = _time_encoder(session, prompt)
                prefill_ms, *step_ms = _generate(prompt, job.new_tokens)
        except EdgetieError as error:
            hint = "if the model takes fewer tokens, use a shorter prompt and fewer new tokens"
            raise BundleError(f"{error}; {hint}") from error
        after = read_memory()
    speculative_ms, accepted_share = _speculate(session, prompt, job.new_tokens)
    return Run(
        load_seconds=session.load_seconds,
        prompt_tokens=tokens,
        first_run_ms=first_run_ms,
        encode_ms=encode_ms,
        prefill_ms=prefill_ms,
        step_ms=step_ms,
        speculative_ms=speculative_ms,
        accepted_share=accepted_share,
        baseline_rss_bytes=before.rss,
        rss_bytes=after.rss - before.rss,
        anonymous_bytes=after.anonymous - before.anonymous,
        file_mapped_bytes=after.file_mapped - before.file_mapped,
        peak_rss_bytes=after.peak - before.rss,
        provider=session.provider,
        threads=session.threads,
        nodes_per_provider=session.nodes_per_provider,
        fallback_nodes=session.fallback_nodes,
        onnxruntime_version=onnxruntime.__version__,
        latency_problem=latency_problem(session.provider),
        timeline=[
            (at, use.anonymous - before.anonymous, use.file_mapped - before.file_mapped)
            for at, use in samples
        ],
    )


def _make_prompt(session: Session, job: Job) -> Prompt:
    """Draw random tokens; an audio model reads noise before them, others an image."""
    if job.batch > 1 and reads_audio(session):
        raise BundleError(f"{job.path}: reads audio or images, in batches of 1 only")
    ids = _random_tokens(session, job)
    images = open_images(session, Path(job.image) if job.image else None)
    return Prompt(session, ids, job.new_tokens, encoder_inputs(session, ids, images))


def _random_tokens(session: Session, job: Job) -> npt.NDArray[np.int64]:
    """Draw tokens ``(batch, prompt_tokens)``."""
    size = next((value.shape[-1] for value in session.outputs if value.name == "logits"), None)
    vocabulary = size if isinstance(size, int) else 256  # if the graph does not have it
    return random_ids(job.batch * job.prompt_tokens, vocabulary).reshape(job.batch, -1)


def _forward_pass(session: Session, ids: npt.NDArray[np.int64]) -> Callable[[], object]:
    """Return a function that reads all tokens at once, as a masked language model does."""
    values, path = token_inputs(ids), session.bundle.model_path
    most, count = session.bundle.manifest.signature.max_positions, ids.shape[1]
    if most is not None and count > most:
        raise EdgetieError(f"{path}: accepts {most} tokens, not {count}")
    wanted = [info for info in session.inputs if info.name in values]
    feeds = {info.name: values[info.name].astype(info.dtype) for info in wanted}

    def run() -> object:
        with onnxruntime_errors(path):
            return session.ort.run(["logits"], feeds)

    return run


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def _time_encoder(session: Session, prompt: Prompt) -> float | None:
    encoder = session.encoder
    return encoder and _time(lambda: encoder.run(None, prompt.encoder_inputs))


def _generate(prompt: Prompt, count: int) -> list[float]:
    """Generate greedily; return the milliseconds of each token, the first with the prompt."""
    prompt.decoder.reset()
    times = [time.perf_counter()]
    for _ in prompt.generate(count):
        times.append(time.perf_counter())
    return [1000 * (end - start) for start, end in pairwise(times)]


def _speculate(
    session: Session, prompt: Prompt | None, count: int
) -> tuple[float | None, float | None]:
    """Generate with proposed tokens; return the milliseconds of a token, and the share accepted."""
    if prompt is None or not session.speculates or prompt.decoder.batch > 1:
        return None, None
    prompt.decoder.reset()
    steps = prompt.generate_with_proposals(count)
    (start, _), *_, (end, last) = [(time.perf_counter(), step) for step in steps]
    share = last.accepted / last.proposed if last.proposed else None
    return 1000 * (end - start) / (count - 1), share


if __name__ == "__main__":
    reply(lambda request: asdict(measure(Job(**request))))
