"""One measured run in a process of its own: ``python -m edgetie.harness.latency.worker``.

Reads a :class:`Job` as JSON on stdin, measures, and writes a :class:`Run` as JSON on stdout, or
``{"error": {"type", "message"}}``. A fresh process is the only way to an honest load time and an
honest memory use: a second session in one process finds warm allocators and mapped files.

Order: memory after all imports (the baseline); the session opens (timed); the first run, timed by
itself, pays for whatever ONNX Runtime left for it; a short generation that does not count; then
the measured one, with an empty cache. Memory is read at its last token, the cache still alive.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetie.errors import BundleError, EdgetieError
from edgetie.harness.accuracy.samples import random_ids
from edgetie.providers.environment import latency_problem
from edgetie.providers.json_worker import reply
from edgetie.runtime.audio.embeddings import embed_audio, noise, with_audio_tokens
from edgetie.runtime.decoding.generation import decoder_for
from edgetie.runtime.decoding.seq2seq_decoder import Seq2SeqDecoder
from edgetie.runtime.memory import MemorySampler, read_memory
from edgetie.runtime.session import Session, open_session

_WARM_UP_TOKENS = 8
_SEED = 20240229


@dataclass(frozen=True)
class Job:
    """What to measure. ``batch`` rows read as many prompts of one length. ``sample_memory`` adds a
    timeline, at the price of disturbed latencies.
    """

    path: str
    provider: str
    threads: int | None
    prompt_tokens: int
    new_tokens: int
    batch: int = 1
    strict: bool = False
    sample_memory: bool = False


@dataclass(frozen=True)
class Run:
    """What one run measured.

    Attributes:
        load_seconds: opening the session.
        prompt_tokens: tokens read before the first one.
        first_run_ms: the first prefill of the session.
        encode_ms: the encoder alone, where there is one.
        prefill_ms: prompt to first token, chosen (TTFT), with the encoder.
        step_ms: each later token, ``(new_tokens - 1,)``.
        baseline_rss_bytes: resident after imports, before loading; the other sizes are over it.
        rss_bytes, anonymous_bytes, file_mapped_bytes: at the last token.
        peak_rss_bytes: largest resident size up to then.
        threads: intra-op threads.
        nodes_per_provider: nodes of the optimized graph, by ONNX Runtime's provider name.
        elsewhere: by operator, those that run elsewhere than asked.
        latency_problem: why the latencies mean nothing, or ``None``.
        timeline: ``(seconds, anonymous, file-mapped)`` over the baseline, if sampled.
    """

    load_seconds: float
    prompt_tokens: int
    first_run_ms: float
    encode_ms: float | None
    prefill_ms: float
    step_ms: list[float]
    baseline_rss_bytes: int
    rss_bytes: int
    anonymous_bytes: int
    file_mapped_bytes: int
    peak_rss_bytes: int
    threads: int
    nodes_per_provider: dict[str, int]
    fallback_nodes: dict[str, int]
    latency_problem: str | None
    timeline: list[tuple[float, int, int]] = field(default_factory=list)


def measure(job: Job) -> Run:
    """Measure in this process, which should have done nothing but import.

    Raises:
        BundleError: if the model cannot be read or takes fewer tokens than asked.
        ProviderError: if the provider is unknown, absent or does not take the model.
    """
    before = read_memory()
    sampler = MemorySampler() if job.sample_memory else None
    with sampler or nullcontext():
        session = open_session(
            job.path, provider=job.provider, threads=job.threads, strict=job.strict
        )
        prompt = _Prompt(session, job)
        try:
            first_run_ms = _generate(prompt, 1)[0]
            _generate(prompt, min(_WARM_UP_TOKENS, job.new_tokens))
            encode_ms = prompt.encode()
            prefill_ms, *step_ms = _generate(prompt, job.new_tokens)
        except EdgetieError as error:
            hint = "if the model takes fewer tokens, lower --prompt-tokens and --new-tokens"
            raise BundleError(f"{error}; {hint}") from error
        after = read_memory()
    timeline = [
        (at, use.anonymous - before.anonymous, use.file_mapped - before.file_mapped)
        for at, use in (sampler.samples if sampler else ())
    ]
    return Run(
        load_seconds=session.load_seconds,
        prompt_tokens=prompt.tokens,
        first_run_ms=first_run_ms,
        encode_ms=encode_ms,
        prefill_ms=prefill_ms,
        step_ms=step_ms,
        baseline_rss_bytes=before.rss,
        rss_bytes=after.rss - before.rss,
        anonymous_bytes=after.anonymous - before.anonymous,
        file_mapped_bytes=after.file_mapped - before.file_mapped,
        peak_rss_bytes=after.peak - before.rss,
        threads=session.threads,
        nodes_per_provider=session.nodes_per_provider,
        fallback_nodes=session.fallback_nodes,
        latency_problem=latency_problem(job.provider),
        timeline=timeline,
    )


def _vocabulary(session: Session) -> int:
    """Size of the vocabulary; one the graph does not tell is taken to hold the 256 bytes."""
    size = next((value.shape[-1] for value in session.outputs if value.name == "logits"), None)
    return size if isinstance(size, int) else 256


class _Prompt:
    """Random tokens and, for a model that hears, noise; and the decoder that reads them.

    Attributes:
        decoder: with room for them and the tokens to come.
        tokens: that it reads.
    """

    def __init__(self, session: Session, job: Job) -> None:
        self._session = session
        count = job.batch * job.prompt_tokens
        self._ids = random_ids(count, _vocabulary(session)).reshape(job.batch, -1)
        self._length = job.prompt_tokens + job.new_tokens
        self._source: dict[str, npt.NDArray[Any]] = {}
        self._hears = False
        if session.encoder is not None:
            self._hears = session.encoder.get_inputs()[0].name != "input_ids"
            self._source = {"input_ids": self._ids, "attention_mask": np.ones_like(self._ids)}
        if self._hears and job.batch > 1:
            raise BundleError(f"{job.path}: hears; --batch above 1 is for models that read text")
        if self._hears:
            self._source = noise(session.encoder, np.random.default_rng(_SEED))
        ids = self._ids if session.encoder is None or session.cross else self._heard()[0]
        self.decoder = decoder_for(session, job.batch, ids.shape[1], job.new_tokens)
        self.tokens = int(ids.shape[1])
        if self._hears and isinstance(self.decoder, Seq2SeqDecoder):
            self.tokens = len(self.decoder.start)

    def _heard(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        token = self._session.bundle.manifest.signature.audio_token_id
        return with_audio_tokens(
            self._ids, embed_audio(self._session, self._source), token, self._length
        )

    def encode(self) -> float | None:
        """Milliseconds of the encoder."""
        if self._session.encoder is None:
            return None
        start = time.perf_counter()
        self._session.encoder.run(None, self._source)
        return (time.perf_counter() - start) * 1000

    def prefill(self) -> npt.NDArray[np.float32]:
        """Logits ``(1, vocabulary)`` behind the prompt."""
        if isinstance(self.decoder, Seq2SeqDecoder):
            return self.decoder.prefill(next(iter(self._source.values())))
        if not self._source:
            return self.decoder.prefill(self._ids)
        ids, audio_embeddings = self._heard()
        return self.decoder.prefill(ids, audio_embeddings=audio_embeddings)


def _generate(prompt: _Prompt, count: int) -> list[float]:
    """Milliseconds for each of ``count`` greedy tokens; the first includes the prompt."""
    decoder = prompt.decoder
    decoder.reset()
    times = []
    last = time.perf_counter()
    logits = prompt.prefill()
    while True:
        token = logits.argmax(axis=-1)
        now = time.perf_counter()
        times.append((now - last) * 1000)
        if len(times) == count:
            return times
        last = now
        logits = decoder.step(token)


def main() -> None:
    reply(lambda request: asdict(measure(Job(**request))))


if __name__ == "__main__":
    main()
