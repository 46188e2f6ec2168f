"""Sound to text: what is said in a clip, as a stream."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle import language_token_ids
from edgetie.errors import EdgetieError
from edgetie.runtime.audio import FeatureExtractor
from edgetie.runtime.generation import (
    GREEDY,
    Chunk,
    continued,
    stop_tokens,
    written,
)
from edgetie.runtime.sampling import Sampling
from edgetie.runtime.seq2seq import Seq2SeqDecoder
from edgetie.runtime.session import Session
from edgetie.runtime.tokenizer import Tokenizer

_POSITIONS = 448  # where the model has no limit of its own


def transcribe(
    session: Session,
    tokenizer: Tokenizer,
    samples: NDArray[np.float32],
    *,
    language: str | None = None,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    seed: int | None = None,
) -> Iterator[Chunk]:
    """Write down what is said in a clip and stream it; tokens are those of transformers' generate.

    Args:
        session: an opened speech model.
        tokenizer: of the same model.
        samples: ``(count,)`` from -1 to 1 at the model's rate, float32
            (:func:`edgetie.runtime.audio.read_wav`).
        language: its code, such as ``en``, for a model of several languages; by default the one
            that the model hears.
        max_new_tokens: most tokens to write; ``None`` for as many as the model allows.
        sampling: how tokens are chosen.
        seed: makes sampling repeatable.

    Raises:
        AudioError: if the clip is empty or longer than the model takes.
        BundleError: if the model hears nothing, or ONNX Runtime fails on it.
        EdgetieError: if it does not know the language.
    """
    bundle = session.bundle
    features = FeatureExtractor.from_bundle(bundle)(samples)
    known = language_token_ids(bundle.directory)
    if language is not None and language not in known:
        names = ", ".join(sorted(known)) or "no language by name"
        raise EdgetieError(f"language {language}: the model knows {names}")
    manifest = bundle.manifest
    positions = (manifest.signature.max_positions if manifest is not None else None) or _POSITIONS
    decoder = Seq2SeqDecoder(session, 1, positions)
    start, named = decoder.start, set(known.values())
    if known and (language or not named & set(start)):
        decoder.start = start[:1]
        logits = decoder.prefill(features)
        ids = list(known.values()) if language is None else [known[language]]
        spoken = ids[int(logits[0, ids].argmax())]
        decoder.start = [start[0], spoken, *(token for token in start[1:] if token not in named)]
        logits = decoder.restart()
    else:
        logits = decoder.prefill(features)
    room = positions - len(decoder.start)
    limit = room if max_new_tokens is None else min(max_new_tokens, room)
    steps = continued(decoder, logits, limit, sampling, stop_tokens(bundle), seed)
    yield from written(steps, tokenizer, [len(decoder.start)])
