"""Generate tokens from an opened session, one step at a time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.names import IMAGE_TO_TEXT, SPEECH
from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.decoding.constraint import Constraint
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.fixed_shape_decoder import FixedShapeDecoder
from edgetie.runtime.decoding.prompt_cache import PromptCache
from edgetie.runtime.decoding.sampling import Sampling, sample
from edgetie.runtime.decoding.seq2seq_decoder import Seq2SeqDecoder
from edgetie.runtime.decoding.speculation import Speculation
from edgetie.runtime.images.embeddings import ImageEmbeddings
from edgetie.runtime.session import Session
from edgetie.runtime.text.tokenizer import pad

GREEDY = Sampling()


class TokenDecoder(Protocol):
    """What generation needs of a decoder, whose attributes and methods :class:`Decoder` documents.

    :class:`Decoder`, :class:`Seq2SeqDecoder` and :class:`FixedShapeDecoder` satisfy it.
    """

    session: Session
    batch: int
    max_length: int
    length: int

    def reset(self) -> None: ...

    def rewind(self, length: int) -> None: ...

    def prefill(
        self,
        prompt: NDArray[Any],
        attention_mask: NDArray[np.int64] | None = None,
        audio_embeddings: NDArray[np.float32] | None = None,
        image_embeddings: ImageEmbeddings | None = None,
    ) -> NDArray[np.float32]: ...

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Step:
    """One token for every sequence.

    Attributes:
        tokens: ``(batch,)``; meaningless for sequences that are not ``active``.
        active: ``(batch,)``, sequences that had not ended before this step.
        stopped: ``(batch,)``, sequences whose token in this step is a stop token.
        complete: ``(batch,)``, sequences that end with this token as the constraint allows no more.
        proposed, accepted: tokens that a session which speculates has proposed up to here, and how
            many of them were accepted.
    """

    tokens: NDArray[np.int64]
    active: NDArray[np.bool_]
    stopped: NDArray[np.bool_]
    complete: NDArray[np.bool_]
    proposed: int = 0
    accepted: int = 0


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_token_ids: frozenset[int] | None = None,
    constraint: Constraint | None = None,
    seed: int | None = None,
    prompt_cache: PromptCache | None = None,
) -> Iterator[Step]:
    """Continue prompts, one step at a time, until each has ended or has enough tokens.

    Args:
        session: an opened decoder.
        prompts: token ids of each; they are padded on the left, or on the right for an encoder.
        max_new_tokens: most tokens to add; fewer if the model's longest sequence ends before. All
            prompts have the room of the longest.
        sampling: how tokens are selected.
        stop_token_ids: tokens that end a sequence; ``None`` for the model's own, an empty set to
            never stop early.
        constraint: what each text must be; its tokenizer is the model's.
        seed: makes sampling repeatable.
        prompt_cache: a file with the beginning of the prompt, of which there is one.

    Raises:
        ConstraintError: if the constraint cannot be met.
        BundleError: if the model is not a decoder, ONNX Runtime fails on it, or the prompt cache
            cannot be used.
        EdgetieError: if a prompt is empty, too long for the model or has tokens that it lacks,
            ``max_new_tokens`` or ``seed`` is too small, or several prompts have a prompt cache.
    """
    require_limits(max_new_tokens, seed)
    _require_prompts(session, prompts)
    if session.bundle.task == SPEECH:
        raise BundleError(f"{session.bundle.directory}: reads audio, not text; use transcribe")
    if session.bundle.task == IMAGE_TO_TEXT:
        raise BundleError(
            f"{session.bundle.directory}: reads images, not text; use generate_from_images"
        )
    ids, mask = pad(prompts, side="right" if session.cross else "left")
    decoder = make_decoder(session, len(prompts), ids.shape[1], max_new_tokens)
    if prompt_cache is None:
        logits = decoder.prefill(ids, mask)
    else:
        logits = prompt_cache.prefill(decoder, prompts[0])
    read = () if session.cross else prompts
    yield from continue_prompt(
        decoder, logits, max_new_tokens, sampling, seed, read, stop_token_ids, constraint
    )


def generate_from_images(
    session: Session,
    inputs: Mapping[str, NDArray[Any]],
    *,
    max_new_tokens: int,
    start: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    stop_token_ids: frozenset[int] | None = None,
    constraint: Constraint | None = None,
    seed: int | None = None,
) -> Iterator[Step]:
    """Write the texts of images, one step at a time.

    Args:
        session: an opened ``image-to-text`` model.
        inputs: of its encoder by name, ``(batch, ...)`` each.
        start: tokens that every text starts with instead of the model's own, such as a task's.
        max_new_tokens, sampling, stop_token_ids, constraint, seed: as in :func:`generate`.

    Raises:
        BundleError: if the model is another one, or ONNX Runtime fails on it.
        EdgetieError: if one of ``inputs`` is missing, there are more tokens in ``start`` than the
            model accepts, or a number is too small.
    """
    require_limits(max_new_tokens, seed)
    if session.bundle.task != IMAGE_TO_TEXT:
        raise BundleError(
            f"{session.bundle.directory}: a bundle for {session.bundle.task}; images are read with "
            f"one for {IMAGE_TO_TEXT}"
        )
    batch = len(next(iter(inputs.values())))
    room = (len(start) or len(session.bundle.manifest.signature.start_token_ids)) + max_new_tokens
    limit = session.bundle.manifest.signature.max_positions
    decoder = Seq2SeqDecoder(session, batch, room if limit is None else min(room, limit))
    decoder.start = list(start) or decoder.start
    logits = decoder.encode(inputs)
    yield from continue_prompt(
        decoder, logits, max_new_tokens, sampling, seed, (), stop_token_ids, constraint
    )


def continue_prompt(
    decoder: TokenDecoder,
    logits: NDArray[np.float32],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int | None,
    prompts: Sequence[Sequence[int]] = (),
    stop_token_ids: frozenset[int] | None = None,
    constraint: Constraint | None = None,
) -> Iterator[Step]:
    """Generate the steps of :func:`generate` after the prompt.

    Args:
        decoder: has read the prompt.
        logits: ``(batch, vocabulary)`` of the first token to come.
        max_new_tokens, sampling, seed, stop_token_ids, constraint: as in :func:`generate`.
        prompts: what the decoder has read, for the repetition penalty.
    """
    signature = decoder.session.bundle.manifest.signature
    stops = list(signature.eos_token_ids if stop_token_ids is None else stop_token_ids)
    suppressed = list(signature.suppressed_token_ids)
    for token in (signature.audio_token_id, signature.image_token_id):
        if token is not None:  # it marks audio or images in prompts and is not text
            suppressed.append(token)
    at_start = [*suppressed, *signature.begin_suppressed_token_ids]
    suppressed, at_start = (
        [token for token in tokens if token < logits.shape[-1]]  # settings may name others
        for tokens in (suppressed, at_start)
    )
    rng = np.random.default_rng(seed)
    seen = np.zeros(logits.shape, np.bool_)
    for index, prompt in enumerate(prompts):
        seen[index, list(prompt)] = True
    speculation = None
    if decoder.session.speculates and isinstance(decoder, Decoder) and decoder.batch == 1:
        speculation = Speculation(decoder, prompts[0] if prompts else (), {*suppressed, *stops})
    step = decoder.step if speculation is None else speculation.step
    active = np.ones(len(logits), np.bool_)
    constrained = None if constraint is None else constraint.start(len(logits), stops)
    for remaining in range(max_new_tokens, 0, -1):
        never = at_start if remaining == max_new_tokens else suppressed
        if never:
            logits = logits.copy()
            logits[:, never] = -np.inf
        if constrained is not None:
            logits = constrained.mask(logits, active)
        tokens = sample(logits, sampling, rng, seen)
        stopped = active & np.isin(tokens, stops)
        complete = np.zeros_like(active)
        if constrained is not None:
            complete = constrained.add(tokens, active & ~stopped)
        counts = (0, 0) if speculation is None else (speculation.proposed, speculation.accepted)
        yield Step(tokens, active, stopped, complete, *counts)
        active = active & ~(stopped | complete)
        if remaining == 1 or not active.any() or decoder.length == decoder.max_length:
            return
        seen[np.arange(len(tokens)), tokens] = True
        logits = step(tokens)


def require_limits(max_new_tokens: int | None, seed: int | None) -> None:
    """Refuse numbers that are too small."""
    if max_new_tokens is not None and max_new_tokens < 1:
        raise EdgetieError("must be 1 or more", parameter="max_new_tokens", value=max_new_tokens)
    if seed is not None and seed < 0:
        raise EdgetieError("must be 0 or more", parameter="seed", value=seed)


def _require_prompts(session: Session, prompts: Sequence[Sequence[int]]) -> None:
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise EdgetieError("a prompt is empty; give at least one token")
    signature = session.bundle.manifest.signature
    size, audio_token = signature.vocab_size, signature.audio_token_id
    if not size:
        return
    if any(audio_token in prompt for prompt in prompts):
        raise EdgetieError(
            f"{session.bundle.directory}: token {audio_token} of a prompt stands for audio; use "
            "transcribe"
        )
    limit = math.inf if session.cross else size  # an encoder may have other tokens
    wrong = [token for prompt in prompts for token in prompt if not 0 <= token < limit]
    if wrong:
        raise EdgetieError(
            f"{session.bundle.directory}: token {wrong[0]} of a prompt, but the model has only "
            f"{size} tokens; its tokenizer does not belong to it"
        )


def make_decoder(session: Session, batch: int, prompt_tokens: int, new_tokens: int) -> TokenDecoder:
    """Make a decoder with room for so many tokens, or up to the model's limit."""
    signature = session.bundle.manifest.signature
    # an encoder reads the prompt, and the decoder begins with tokens of its own
    first = len(signature.start_token_ids) if session.cross else prompt_tokens
    room = first + new_tokens
    if signature.max_positions is not None:
        room = max(first, min(room, signature.max_positions))
    if session.bundle.has_fixed_shapes:
        return FixedShapeDecoder(session, batch, room)
    return (Seq2SeqDecoder if session.cross else Decoder)(session, batch, room)
