"""Transcribe audio, as a stream of text."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.names import AUDIO_LM, PROCESSOR
from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.audio.embeddings import embed_audio
from edgetie.runtime.audio.features import FeatureExtractor, read_settings
from edgetie.runtime.decoding.generation import (
    GREEDY,
    TokenDecoder,
    continue_prompt,
    make_decoder,
    require_limits,
)
from edgetie.runtime.decoding.sampling import Sampling
from edgetie.runtime.decoding.seq2seq_decoder import Seq2SeqDecoder
from edgetie.runtime.decoding.text_generation import Chunk, stream_text
from edgetie.runtime.session import Session
from edgetie.runtime.text.tokenizer import Tokenizer

_LIMIT = 448  # tokens of a model without a limit, and of a language model's answer


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
    """Transcribe audio and stream the text; tokens are those of transformers' generate.

    Args:
        session: an opened speech model.
        tokenizer: of the same model.
        samples: ``(count,)`` from -1 to 1 at the model's rate, float32
            (:func:`edgetie.runtime.audio.features.read_wav`).
        language: its code, such as ``en``, for a model of several languages; by default the one
            that the model detects.
        max_new_tokens: most tokens to write; ``None`` for as many as a speech model allows, and
            448 of a language model with audio input (audio-lm).
        sampling: how tokens are selected.
        seed: makes sampling repeatable.

    Raises:
        AudioError: if the audio is empty or longer than the model accepts.
        BundleError: if the model reads no audio, or ONNX Runtime fails on it.
        EdgetieError: if it does not have the language, or a number is too small.
    """
    require_limits(max_new_tokens, seed)
    signature = session.bundle.manifest.signature
    extractor = FeatureExtractor.from_bundle(session.bundle)
    languages = signature.language_token_ids
    if language is not None and language not in languages:
        names = ", ".join(sorted(languages)) or "no language by name"
        raise EdgetieError(f"the model has {names}", parameter="language", value=language)
    limit = max_new_tokens or _LIMIT
    if session.bundle.task == AUDIO_LM:
        audio_embeddings = embed_audio(session, extractor.feeds(samples))
        ids = _chat_prompt(session.bundle, tokenizer, len(audio_embeddings))
        decoder: TokenDecoder = make_decoder(session, 1, len(ids), limit)
        logits = decoder.prefill(np.array([ids], np.int64), audio_embeddings=audio_embeddings)
    else:
        positions = signature.max_positions or _LIMIT
        decoder = Seq2SeqDecoder(session, 1, positions)
        logits = _start(decoder, extractor(samples), language)
        limit = min(max_new_tokens or positions, positions - decoder.length)
    prompt_tokens = decoder.length
    steps = continue_prompt(decoder, logits, limit, sampling, seed)
    yield from stream_text(steps, tokenizer, [prompt_tokens])


def _start(
    decoder: Seq2SeqDecoder, features: NDArray[np.float32], language: str | None
) -> NDArray[np.float32]:
    """Read features and start with the token of a language: as given, or as the model detects."""
    languages = decoder.session.bundle.manifest.signature.language_token_ids
    start, tokens = decoder.start, set(languages.values())
    if not languages or (language is None and tokens & set(start)):
        return decoder.prefill(features)
    decoder.start = start[:1]
    logits = decoder.prefill(features)
    ids = list(languages.values()) if language is None else [languages[language]]
    if max(ids) >= logits.shape[-1]:
        raise BundleError(
            f"{decoder.session.bundle.directory}: token {max(ids)} of a language, but the model "
            f"has only {logits.shape[-1]} tokens; export it again"
        )
    spoken = ids[int(logits[0, ids].argmax())]
    decoder.start = [start[0], spoken, *(token for token in start[1:] if token not in tokens)]
    return decoder.restart()


def _chat_prompt(bundle: Bundle, tokenizer: Tokenizer, count: int) -> list[int]:
    """The chat that asks for a transcript, with ``count`` audio tokens."""
    token = bundle.manifest.signature.audio_token_id
    settings = read_settings(bundle.directory / PROCESSOR)
    if token is None or tokenizer.chat_template is None or "time_marker_every_seconds" in settings:
        raise BundleError(
            f"{bundle.directory}: has no chat template with one place for audio; make the prompt "
            "yourself and run it from Python (embed_audio, Decoder.prefill)"
        )
    text = settings.get("default_transcription_prompt")
    content = [{"type": "audio"}, *([{"type": "text", "text": text}] if text else [])]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": content}])
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    if ids.count(token) != 1:
        raise EdgetieError(
            f"the prompt has token {token}, which stands for audio, {ids.count(token)} times "
            "instead of once"
        )
    at = ids.index(token)
    return [*ids[:at], *[token] * count, *ids[at + 1 :]]
