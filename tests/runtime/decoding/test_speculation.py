"""Proposed tokens: the text is the one without them, whatever selects its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_models as tiny
from own_provider import needs_own_provider, write_int8

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.manifest import write_manifest
from edgetie.runtime.decoding.constraint import Constraint
from edgetie.runtime.decoding.conversation import Conversation
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.decoding.sampling import Sampling
from edgetie.runtime.decoding.speculation import propose
from edgetie.runtime.decoding.text_generation import Completion, generate_text
from edgetie.runtime.session import Session, open_session
from edgetie.runtime.text.tokenizer import Tokenizer

PROMPT = [7, 8, 9, 10, 7, 8]
ROOM = 200


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that soon repeats itself, with room for long texts."""
    directory = tiny.write_chat_bundle(tmp_path_factory.mktemp("chat") / "bundle")
    manifest = open_bundle(directory).manifest
    longer = replace(manifest.signature, max_positions=ROOM)
    write_manifest(directory, replace(manifest, signature=longer))
    return directory


@pytest.fixture(scope="module")
def sessions(directory: Path) -> tuple[Session, Session]:
    """A session that does not speculate, and one that does."""
    plain, other = (open_session(directory, threads=1, speculate=each) for each in (False, True))
    assert (plain.speculates, other.speculates) == (False, True)
    return plain, other


def run(session: Session, prompt: list[int], **options: Any) -> tuple[list[int], int, int]:
    """Tokens, and how many were proposed and accepted."""
    options = {"max_new_tokens": 100, "stop_token_ids": frozenset(), **options}
    steps = list(generate(session, [prompt], **options))
    return [int(step.tokens[0]) for step in steps], steps[-1].proposed, steps[-1].accepted


def test_what_followed_last_is_proposed() -> None:
    def proposed(*text: int, most: int = 3) -> list[int]:
        return propose(np.array(text), most).tolist()

    assert proposed(1, 2, 3, 4, 5, 6, 1, 2) == [3, 4, 5]
    assert proposed(1, 2, 3, 4, 1, 2, 8, 1, 2) == [8, 1, 2]  # the latest of two
    assert proposed(9, 1, 2, 3, 0, 1, 2, 8, 9, 1, 2) == [3, 0, 1]  # as three are alike
    assert proposed(1, 2, 3, 1, 2, most=1) == [3]
    assert proposed(5, 5, 5) == [5]
    assert proposed(1, 2, 3, 4, 2) == proposed(1, 2, 3) == proposed(1) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampling": Sampling(0.3), "seed": 1},
        {"sampling": Sampling(0.7, top_k=5), "seed": 2},
        {"sampling": Sampling(0.5, top_p=0.9, repetition_penalty=1.1), "seed": 3},
        {"max_new_tokens": 1000},  # more than there is room for
    ],
)
def test_the_tokens_are_those_without_proposals(
    sessions: tuple[Session, Session], options: dict[str, Any]
) -> None:
    tokens, *none = run(sessions[0], PROMPT, **options)
    same, proposed, accepted = run(sessions[1], PROMPT, **options)
    assert same == tokens
    assert none == [0, 0]
    assert 0 < accepted <= proposed


def test_a_text_that_repeats_takes_fewer_runs(
    sessions: tuple[Session, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    verify = Decoder.verify
    monkeypatch.setattr(
        Decoder, "verify", lambda self, tokens: runs.append(len(tokens)) or verify(self, tokens)
    )
    tokens, proposed, accepted = run(sessions[1], PROMPT)
    assert len(runs) == len(tokens) - 1 - accepted < 80
    assert sum(runs) == len(runs) + proposed
    assert max(runs) == 5


def test_stop_tokens_and_suppressed_tokens_are_not_proposed(
    sessions: tuple[Session, Session],
) -> None:
    tokens, *_ = run(sessions[0], PROMPT)
    stop = tokens[-1]
    shorter = run(sessions[1], PROMPT, stop_token_ids=frozenset([stop]))[0]
    assert shorter == tokens[: tokens.index(stop) + 1]
    for session in sessions:
        session.bundle.manifest.signature.suppressed_token_ids = [stop]
    other = run(sessions[0], PROMPT)[0]
    assert run(sessions[1], PROMPT)[0] == other != tokens
    for session in sessions:
        session.bundle.manifest.signature.suppressed_token_ids = []


def test_several_sequences_have_no_proposals(sessions: tuple[Session, Session]) -> None:
    steps = [
        list(generate(each, [PROMPT, [3]], max_new_tokens=20, stop_token_ids=frozenset()))
        for each in sessions
    ]
    for plain, other in zip(*steps, strict=True):
        assert plain.tokens.tolist() == other.tokens.tolist()
    assert steps[1][-1].proposed == 0


def texts(session: Session, constraint: str | None, **options: Any) -> Iterator[Completion]:
    tokenizer = Tokenizer.from_bundle(session.bundle)
    made = None if constraint is None else Constraint.grammar(constraint, tokenizer)
    for chunk in generate_text(
        session, tokenizer, ["small small"], max_new_tokens=60, constraint=made, **options
    ):
        if chunk.completion is not None:
            yield chunk.completion


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_constrained_texts_are_those_without_proposals(
    sessions: tuple[Session, Session], temperature: float
) -> None:
    grammar = 'start: (" small model" | " some time"){8} "."'
    options = {"sampling": Sampling(temperature), "seed": 4}
    plain, other = (next(texts(each, grammar, **options)) for each in sessions)
    assert other.tokens == plain.tokens
    assert (plain.proposed_tokens, plain.accepted_tokens) == (0, 0)
    assert 0 < other.accepted_tokens <= other.proposed_tokens


def test_an_answer_that_was_left_has_no_effect(directory: Path) -> None:
    """Rejected and unread proposals are gone from the decoder."""
    answers = []
    for speculate in (False, True):
        session = open_session(directory, threads=1, speculate=speculate)
        conversation = Conversation(session, Tokenizer.from_bundle(session.bundle))
        for count in range(1, 12):
            chunks = conversation.ask("once", max_new_tokens=20)
            for _ in range(count):
                next(chunks)
        *_, last = conversation.ask("time", max_new_tokens=20)
        assert last.completion is not None
        answers.append(last.completion.tokens)
    assert answers[0] == answers[1]


@needs_own_provider
def test_the_own_provider_gives_the_very_same_logits(tmp_path: Path) -> None:
    session = open_session(write_int8(tmp_path), provider="edgetie", threads=2)
    assert session.speculates
    tokens = np.random.default_rng(0).integers(3, tiny.VOCAB, 40)
    decoder = Decoder(session, 1, 40)
    decoder.prefill(tokens[None, :30])
    one_by_one = [decoder.step(tokens[at : at + 1])[0] for at in range(30, 38)]
    for count in range(1, 6):
        decoder.length = 30
        together = decoder.verify(tokens[30 : 30 + count])
        assert np.array_equal(together, one_by_one[:count])


@needs_own_provider
@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_p=0.9)])
def test_a_real_model_writes_the_same(real_int8: Path, sampling: Sampling) -> None:
    plain, other = (open_session(real_int8, speculate=each) for each in (False, None))
    assert other.speculates
    tokenizer = Tokenizer.from_bundle(plain.bundle)
    for text in (
        "Repeat this text word for word: The tied table is stored once, and it is read twice: to "
        "look up the tokens of a text, and to multiply with it at the end.",
        "Why is the sky blue?",
    ):
        prompt = tokenizer.chat_prompt([{"role": "user", "content": text}])
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        options = {"sampling": sampling, "seed": 5, "max_new_tokens": 64}
        assert run(other, ids, **options)[0] == run(plain, ids, **options)[0]
    copied = run(other, ids, max_new_tokens=64)
    assert copied[1] >= copied[2]
