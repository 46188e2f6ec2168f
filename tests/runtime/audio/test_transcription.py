"""Transcripts of hand-built models, against numpy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import bag_models as bag
import numpy as np
import pytest
import runtime_models as tiny

from edgetie.errors import AudioError, BundleError, EdgetieError
from edgetie.runtime.audio.features import FeatureExtractor
from edgetie.runtime.audio.transcription import transcribe
from edgetie.runtime.session import Session, open_session
from edgetie.runtime.text.tokenizer import Tokenizer

SAMPLES = np.array([0.5, 1.5, 2.5, 3.5], np.float32)
LANGUAGES = {"de": 8, "en": 9}


def words(chat_template: str | None = None) -> Tokenizer:
    return Tokenizer(bag.word_tokenizer(), {}, chat_template)


def transcript(session: Session, **options: object) -> list[int]:
    chunks = list(transcribe(session, words(), SAMPLES, **options))  # type: ignore[arg-type]
    completion = chunks[-1].completion
    assert completion is not None
    assert "".join(chunk.text for chunk in chunks) == completion.text
    return completion.tokens


def greedy(start: Sequence[int], count: int, never: Sequence[int] = ()) -> list[int]:
    """Tokens after ``start`` in numpy; ``never`` are left out."""
    ids = list(start)
    for _ in range(count):
        logits = bag.logits(SAMPLES.mean() * bag.TABLE[[5]], bag.TABLE[ids])
        logits[list(never)] = -np.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == 2:
            break
    return ids[len(start) :]


def test_tokens_are_those_of_numpy(tmp_path: Path) -> None:
    session = open_session(bag.write_speech(tmp_path))
    assert transcript(session) == greedy([1, 4], 9 - 2)
    assert transcript(session, max_new_tokens=3) == greedy([1, 4], 3)


def test_suppressed_tokens_are_not_written(tmp_path: Path) -> None:
    never = greedy([1, 4], 1)
    session = open_session(bag.write_speech(tmp_path / "all", suppressed_token_ids=never))
    assert transcript(session) == greedy([1, 4], 7, never)
    session = open_session(bag.write_speech(tmp_path / "first", begin_suppressed_token_ids=never))
    first = greedy([1, 4], 1, never)
    assert transcript(session) == [*first, *greedy([1, 4, *first], 6)]


def test_the_language_is_detected_or_given(tmp_path: Path) -> None:
    session = open_session(bag.write_speech(tmp_path, language_token_ids=LANGUAGES))
    logits = bag.logits(SAMPLES.mean() * bag.TABLE[[5]], bag.TABLE[[1]])
    spoken = max(LANGUAGES.values(), key=lambda token: logits[token])
    assert transcript(session) == greedy([1, spoken, 4], 6)
    for name, token in LANGUAGES.items():
        assert transcript(session, language=name) == greedy([1, token, 4], 6)
    with pytest.raises(EdgetieError, match="the model has de, en"):
        transcript(session, language="fr")


def test_a_language_whose_token_the_model_lacks_is_refused(tmp_path: Path) -> None:
    languages = LANGUAGES | {"fr": 2**31 - 1}
    session = open_session(bag.write_speech(tmp_path, language_token_ids=languages))
    for language in (None, "fr"):
        with pytest.raises(BundleError, match=f"token {2**31 - 1} of a language"):
            transcript(session, language=language)


def test_a_start_with_a_language_is_kept(tmp_path: Path) -> None:
    directory = bag.write_speech(tmp_path, language_token_ids=LANGUAGES, start_token_ids=[1, 8, 4])
    assert transcript(open_session(directory)) == greedy([1, 8, 4], 6)
    assert transcript(open_session(directory), language="en") == greedy([1, 9, 4], 6)


def test_audio_that_is_not_accepted(tmp_path: Path) -> None:
    session = open_session(bag.write_speech(tmp_path / "speech"))
    with pytest.raises(AudioError, match="finite"):
        next(transcribe(session, words(), SAMPLES[:0]))
    with pytest.raises(EdgetieError, match="max_new_tokens=0"):
        next(transcribe(session, words(), SAMPLES, max_new_tokens=0))
    text_model = open_session(tiny.write_packed(tmp_path / "text"))
    with pytest.raises(BundleError, match="not a speech model"):
        next(transcribe(text_model, words(), SAMPLES))


def test_a_language_model_is_asked_in_a_chat(tmp_path: Path) -> None:
    session = open_session(bag.write_audio_lm(tmp_path, frames=2))
    with pytest.raises(BundleError, match="no chat template with one place for audio"):
        next(transcribe(session, words(), SAMPLES))
    for text, count in (("w4 w7", 0), ("w23 w4 w23", 2)):
        with pytest.raises(EdgetieError, match=f"{count} times instead of once"):
            next(transcribe(session, words(text), SAMPLES))
    template = "w4 {% for part in messages[0].content %}{{ 'w23 ' if part.type == 'audio' else "
    template += "part.text }}{% endfor %} w7"
    asked = {"default_transcription_prompt": "w3 w6"}
    (tmp_path / "processor_config.json").write_text(json.dumps(asked), encoding="utf-8")
    *_, last = transcribe(session, words(template), SAMPLES, max_new_tokens=4)
    features = FeatureExtractor.from_bundle(session.bundle)(SAMPLES)
    embeddings, ids = features[0].T, [4, 3, 6, 7]
    for _ in range(4):
        logits = bag.logits(embeddings, bag.TABLE[ids])
        logits[bag.AUDIO_TOKEN] = -np.inf
        ids.append(int(logits.argmax()))
    assert last.completion is not None
    assert last.completion.tokens == ids[4:]
    assert last.completion.prompt_tokens == 6
