"""Turn generated tokens into text, as a stream."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from edgetie.errors import EdgetieError
from edgetie.runtime.decoding.constraint import Constraint, require_one_end
from edgetie.runtime.decoding.generation import GREEDY, Step, generate
from edgetie.runtime.decoding.prompt_cache import PromptCache
from edgetie.runtime.decoding.sampling import Sampling
from edgetie.runtime.session import Session
from edgetie.runtime.text.tokenizer import Detokenizer, Tokenizer

StopReason = Literal["stop_token", "stop_string", "complete", "length"]


@dataclass(frozen=True)
class Completion:
    """A finished text.

    Attributes:
        text: without the stop token or stop string.
        tokens: generated token ids, the stop token included.
        prompt_tokens: number of tokens of the prompt.
        cached_tokens: how many of them were not read, as a prompt cache had them.
        stop_reason: ``stop_token``, ``stop_string``, ``complete`` (the constraint allows no more)
            or ``length`` (there was no room for more, so that a constrained answer is incomplete).
        tokens_per_second: from the second token on; ``None`` if there was none.
        proposed_tokens, accepted_tokens: tokens that a session which speculates has proposed, and
            how many of them are among ``tokens``.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    stop_reason: StopReason
    tokens_per_second: float | None
    cached_tokens: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Chunk:
    """Text added to one completion; its last chunk carries the completion.

    Attributes:
        index: which prompt.
        text: what has been added; may be empty in the last chunk.
        completion: the whole, when the text is finished.
    """

    index: int
    text: str
    completion: Completion | None = None


def generate_text(
    session: Session,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]] | Sequence[str],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_strings: Sequence[str] = (),
    constraint: Constraint | None = None,
    seed: int | None = None,
    prompt_cache: PromptCache | None = None,
) -> Iterator[Chunk]:
    """Continue prompts and stream their text.

    Args:
        session: an opened decoder.
        tokenizer: of the same model.
        prompts: texts, or token ids of each; a list also for one prompt.
        max_new_tokens, sampling, constraint, seed, prompt_cache: as in :func:`generate`.
        stop_strings: texts that end a completion; they are left out of it. They exclude a
            constraint.

    Raises:
        BundleError: as in :func:`generate`.
        ConstraintError: as in :func:`generate`.
        EdgetieError: as in :func:`generate`, and if ``prompts`` is one string.
    """
    require_one_end(stop_strings, constraint)
    if isinstance(prompts, str):
        raise EdgetieError("is one text; make it a list", parameter="prompts", value=prompts)
    encoded = [tokenizer.encode(p) if isinstance(p, str) else list(p) for p in prompts]
    steps = generate(
        session,
        encoded,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        constraint=constraint,
        seed=seed,
        prompt_cache=prompt_cache,
    )
    counts = [len(ids) for ids in encoded]
    yield from stream_text(steps, tokenizer, counts, stop_strings, prompt_cache)


def stream_text(
    steps: Iterable[Step],
    tokenizer: Tokenizer,
    prompt_tokens: Sequence[int],
    stop_strings: Sequence[str] = (),
    prompt_cache: PromptCache | None = None,
) -> Iterator[Chunk]:
    """Turn the steps of :func:`generate` into text.

    ``prompt_tokens`` is only reported, and what ``prompt_cache`` had of them.
    """
    writers = dict(
        enumerate(_Writer(tokenizer, count, stop_strings, prompt_cache) for count in prompt_tokens)
    )
    for step in steps:
        for index, writer in list(writers.items()):
            writer.proposed, writer.accepted = step.proposed, step.accepted
            text = writer.add(int(step.tokens[index]), stopped=bool(step.stopped[index]))
            if step.complete[index]:
                text += writer.finish("complete")
            if text or writer.completion is not None:
                yield Chunk(index, text, writer.completion)
            if writer.completion is not None:
                del writers[index]
        if not writers:
            return
    for index, writer in writers.items():
        yield Chunk(index, writer.finish("length"), writer.completion)


class _Writer:
    """The text of one completion as it grows, up to a stop string."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_tokens: int,
        stop_strings: Sequence[str],
        prompt_cache: PromptCache | None,
    ) -> None:
        self.completion: Completion | None = None
        self.proposed = self.accepted = 0
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = [stop for stop in stop_strings if stop]
        self._prompt_tokens, self._prompt_cache = prompt_tokens, prompt_cache
        self._tokens: list[int] = []
        self._times: list[float] = []
        self._text = ""
        self._pending = ""

    def add(self, token: int, *, stopped: bool) -> str:
        """Add a token; returns the text that is now certain."""
        self._tokens.append(token)
        self._times.append(time.perf_counter())
        return self.finish("stop_token") if stopped else self._write(self._detokenizer.add(token))

    def finish(self, reason: StopReason) -> str:
        """End the completion; returns the text that was pending."""
        return self._write(self._detokenizer.finish(), reason)

    def _write(self, text: str, reason: StopReason | None = None) -> str:
        """Cut at a stop string, or leave pending only what may be the beginning of one."""
        pending = self._pending + text
        end = len(pending)
        cuts = [at for stop in self._stop_strings if (at := pending.find(stop)) >= 0]
        if cuts:
            end, reason = min(cuts), "stop_string"
        elif reason is None:
            end -= max((_overlap(pending, stop) for stop in self._stop_strings), default=0)
        self._text += pending[:end]
        self._pending = pending[end:]
        if reason is not None:
            seconds = self._times[-1] - self._times[0] if self._times else 0.0
            rate = (len(self._tokens) - 1) / seconds if seconds > 0 else None
            cached = 0 if self._prompt_cache is None else self._prompt_cache.cached_tokens
            self.completion = Completion(
                self._text, self._tokens, self._prompt_tokens, reason, rate, cached, self.proposed,
                self.accepted,
            )  # fmt: skip
        return pending[:end]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
