"""Sound to text: what is said in a clip, as a stream."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.model_config import language_token_ids
from edgetie.bundle.names import AUDIO_LM, PROCESSOR
from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.audio.embeddings import embed_audio, make_room
from edgetie.runtime.audio.features import FeatureExtractor, read_settings
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import (
    GREEDY,
    Chunk,
    continued,
    decoder_for,
    require_numbers,
    stop_tokens,
    written,
)
from edgetie.runtime.decoding.sampling import Sampling
from edgetie.runtime.decoding.seq2seq_decoder import Seq2SeqDecoder
from edgetie.runtime.session import Session
from edgetie.runtime.text.tokenizer import Tokenizer

_POSITIONS = 448  # where the model has no limit of its own
_NEW_TOKENS = 448  # of a language model that answers


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
            (:func:`edgetie.runtime.audio.features.read_wav`).
        language: its code, such as ``en``, for a model of several languages; by default the one
            that the model hears.
        max_new_tokens: most tokens to write; ``None`` for as many as the model allows, and 448 of a
            language model that hears (audio-lm).
        sampling: how tokens are chosen.
        seed: makes sampling repeatable.

    Raises:
        AudioError: if the clip is empty or longer than the model takes.
        BundleError: if the model hears nothing, or ONNX Runtime fails on it.
        EdgetieError: if it does not know the language, or a number is less than it can be.
    """
    require_numbers(1 if max_new_tokens is None else max_new_tokens, seed)
    bundle = session.bundle
    extractor = FeatureExtractor.from_bundle(bundle)
    known = language_token_ids(bundle.directory)
    if language is not None and language not in known:
        names = ", ".join(sorted(known)) or "no language by name"
        raise EdgetieError(f"language {language}: the model knows {names}")
    if bundle.task == AUDIO_LM:
        audio_embeddings = embed_audio(session, extractor.feeds(samples))
        most = _NEW_TOKENS if max_new_tokens is None else max_new_tokens
        yield from _answered(session, tokenizer, audio_embeddings, most, sampling, seed)
        return
    features = extractor(samples)
    positions = bundle.manifest.signature.max_positions or _POSITIONS
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


def _answered(
    session: Session,
    tokenizer: Tokenizer,
    audio_embeddings: NDArray[np.float32],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int | None,
) -> Iterator[Chunk]:
    """The answer of a language model that is shown a sound in a chat."""
    ids = _request(session.bundle, tokenizer, len(audio_embeddings))
    decoder = decoder_for(session, 1, len(ids), max_new_tokens)
    assert isinstance(decoder, Decoder)
    logits = decoder.prefill(np.array([ids], np.int64), audio_embeddings=audio_embeddings)
    stops = stop_tokens(session.bundle)
    yield from written(
        continued(decoder, logits, max_new_tokens, sampling, stops, seed), tokenizer, [len(ids)]
    )


def _request(bundle: Bundle, tokenizer: Tokenizer, rows: int) -> list[int]:
    """The chat that asks what is said, with room for a sound.

    Raises:
        BundleError: if the bundle does not say how a model is asked.
    """
    token = bundle.manifest.signature.audio_token_id
    settings = read_settings(bundle.directory / PROCESSOR)
    if token is None or tokenizer.chat_template is None or "time_marker_every_seconds" in settings:
        raise BundleError(
            f"{bundle.directory}: has no chat template with one place for a sound; make the prompt "
            "yourself and run it from Python (edgetie.runtime.hear, Decoder.prefill)"
        )
    text = settings.get("default_transcription_prompt")
    content = [{"type": "audio"}, *([{"type": "text", "text": text}] if text else [])]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": content}])
    return make_room(tokenizer.encode(prompt, add_special_tokens=False), token, rows)
