"""What measurements run on: a text in windows, random ids, prompts, noise and images."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetie.bundle.names import IMAGE_LM, IMAGE_TO_TEXT
from edgetie.errors import BundleError
from edgetie.runtime.audio.embeddings import (
    embed_audio,
    prepend_audio,
    random_features,
    reads_audio,
)
from edgetie.runtime.decoding.generation import GREEDY, Step, continue_prompt, make_decoder
from edgetie.runtime.decoding.seq2seq_decoder import Seq2SeqDecoder
from edgetie.runtime.images.embeddings import embed_images, prepend_images
from edgetie.runtime.images.samples import SampleImages
from edgetie.runtime.session import Session

Ids = npt.NDArray[np.int64]

RANDOM_TOKENS = 256
"""Random ids reach embeddings that no short text uses."""

MASKED = 0.15
"""Share of tokens that are masked for a masked language model."""

_SEED = 20240229

BUILT_IN_TEXT = Path(__file__).with_name("built_in_text.txt").read_text(encoding="utf-8")
"""Written for this check: a story, an explanation, arithmetic, code, a letter, some German."""


def windows(
    ids: Sequence[int], length: int, prefix: Sequence[int] = (), suffix: Sequence[int] = ()
) -> Iterator[Ids]:
    """Cut ``ids`` into consecutive windows that do not overlap.

    Each has ``length`` tokens, or fewer at the end of the text, ``prefix`` and ``suffix`` included:
    ``(tokens,)``. A window of one token, which nothing predicts, is left out.
    """
    step = length - len(prefix) - len(suffix)
    for start in range(0, len(ids), step):
        window = np.array([*prefix, *ids[start : start + step], *suffix], np.int64)
        if len(window) > 1:
            yield window


def next_tokens(window: Ids) -> Ids:
    """Return the targets of a causal model: the next token; -1 at the last position."""
    return np.append(window[1:], -1)


def scored(
    task: str,
    ids: Sequence[int],
    length: int,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    mask: int | None = None,
) -> Iterator[tuple[Ids, Ids]]:
    """Cut a text into windows, each with the targets to predict at its tokens: -1 for none.

    A decoder reads each window without ``suffix`` and predicts the next token. A masked language
    model predicts the tokens replaced by ``mask``. An encoder-decoder model predicts all of them,
    because both its sides read the text.
    """
    cut = windows(ids, length, prefix, () if task == "causal-lm" else suffix)
    for index, window in enumerate(cut):
        if task == "causal-lm":
            yield window, next_tokens(window)
        elif task == "masked-lm" and mask is not None:
            yield masked(window, mask, frozenset([*prefix, *suffix]), index)
        else:
            yield window, window if task == "seq2seq-lm" else np.full_like(window, -1)


def too_short(windows: Iterable[tuple[Ids, Ids]], task: str, mask: int | None) -> bool:
    """Whether :func:`scored` windows have fewer than two targets, though the task has some.

    The standard error of one target is unknown.
    """
    has_targets = task in ("causal-lm", "seq2seq-lm") or (task == "masked-lm" and mask is not None)
    return has_targets and sum(int((targets >= 0).sum()) for _, targets in windows) < 2


def masked(window: Ids, mask: int, keep: frozenset[int], seed: int) -> tuple[Ids, Ids]:
    """Mask 15 % of a window's tokens except ``keep``, as in BERT's training (Devlin et al. 2018).

    Returns the window ``(tokens,)``, and its targets: the masked tokens, -1 at other positions.
    """
    is_masked = np.random.default_rng([_SEED, seed]).random(len(window)) < MASKED
    is_masked &= ~np.isin(window, sorted(keep))
    return np.where(is_masked, mask, window), np.where(is_masked, window, -1)


def random_ids(count: int, vocab_size: int) -> Ids:
    """Draw ids evenly from the vocabulary, the same at every call: ``(count,)``."""
    return np.random.default_rng(_SEED).integers(0, vocab_size, count, dtype=np.int64)


def spread(ids: Sequence[int], count: int, length: int) -> list[list[int]]:
    """Cut ``count`` excerpts of ``length`` tokens, evenly spread; all ``ids`` once if too short."""
    last = len(ids) - length
    if last <= 0:
        return [list(ids)][:count]
    starts = [round(index * last / count) for index in range(count)]
    return [list(ids[start : start + length]) for start in starts]


def open_images(session: Session, source: Path | None = None) -> SampleImages | None:
    """Open images for a model that reads some; see :class:`SampleImages`.

    Raises:
        BundleError: if ``source`` is given, and the model reads no images.
        ImageError: as :class:`SampleImages` does.
    """
    if session.encoder is not None and session.bundle.task in (IMAGE_LM, IMAGE_TO_TEXT):
        return SampleImages(session.bundle, session.encoder, source)
    if source is not None:
        path, task = session.bundle.directory, session.bundle.task
        raise BundleError(f"{path}: a bundle for {task}, which reads no images")
    return None


def encoder_inputs(
    session: Session, ids: Ids, images: SampleImages | None
) -> dict[str, npt.NDArray[Any]]:
    """Make the inputs of an encoder, if there is one.

    They are the tokens themselves, or one of ``images`` or noise, which depend on the tokens.
    """
    if session.encoder is None:
        return {}
    if images is not None:
        return images.feeds(zlib.crc32(ids.tobytes()))
    if reads_audio(session):
        return random_features(session.encoder, np.random.default_rng([_SEED, *ids[0].tolist()]))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def token_inputs(ids: Ids) -> dict[str, Ids]:
    """Make the inputs for tokens ``(batch, tokens)`` without padding, by their usual names."""
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None].repeat(len(ids), axis=0),
        "token_type_ids": np.zeros_like(ids),
    }


class Prompt:
    """Tokens ``(batch, tokens)``, the inputs of an encoder, and the decoder that reads both.

    Attributes:
        encoder_inputs: as :func:`encoder_inputs` makes them.
        decoder: with room for ``new_tokens`` more.
        tokens: tokens that it reads before the first new one.
    """

    def __init__(
        self, session: Session, ids: Ids, new_tokens: int, inputs: dict[str, npt.NDArray[Any]]
    ) -> None:
        self._session, self._ids = session, ids
        self._length = ids.shape[1] + new_tokens
        self.encoder_inputs = inputs
        self._has_embeddings = reads_audio(session) and not session.cross
        self.tokens = int((self.inputs()[0] if self._has_embeddings else ids).shape[1])
        self.decoder = make_decoder(session, len(ids), self.tokens, new_tokens)
        if reads_audio(session) and session.cross:
            self.tokens = len(session.bundle.manifest.signature.start_token_ids)

    def inputs(self) -> tuple[Ids, dict[str, Any]]:
        """Return tokens, and the embeddings that :meth:`Decoder.prefill` takes.

        The encoder computes them.
        """
        if not self._has_embeddings:
            return self._ids, {}
        signature = self._session.bundle.manifest.signature
        if signature.image_token_id is not None:
            images = embed_images(self._session, [self.encoder_inputs])
            ids = prepend_images(self._ids, images, signature.image_token_id)
            return ids, {"image_embeddings": images}
        embeddings = embed_audio(self._session, self.encoder_inputs)
        token = signature.audio_token_id
        ids, embeddings = prepend_audio(self._ids, embeddings, token, self._length)
        return ids, {"audio_embeddings": embeddings}

    def generate_with_proposals(self, count: int) -> Iterator[Step]:
        """Yield steps with the likeliest tokens of a session that speculates."""
        ids, embeddings = self.inputs()
        logits = self.decoder.prefill(ids, **embeddings)
        yield from continue_prompt(
            self.decoder, logits, count, GREEDY, None, ids.tolist(), frozenset()
        )

    def generate(self, count: int) -> Iterator[Ids]:
        """Yield the likeliest tokens ``(batch,)`` of ``count`` positions after the prompt."""
        if isinstance(self.decoder, Seq2SeqDecoder):
            logits = self.decoder.encode(self.encoder_inputs)
        else:
            ids, embeddings = self.inputs()
            logits = self.decoder.prefill(ids, **embeddings)
        tokens = logits.argmax(axis=-1)
        for _ in range(count - 1):
            yield tokens
            tokens = self.decoder.step(tokens).argmax(axis=-1)
        yield tokens
