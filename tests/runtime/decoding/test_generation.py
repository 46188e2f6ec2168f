"""Generation in batches and as text."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path

import bag_models as bag
import numpy as np
import pytest
import runtime_models as tiny

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import EdgetieError
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.fixed_shape_decoder import FixedShapeDecoder
from edgetie.runtime.decoding.generation import TokenDecoder, generate, make_decoder
from edgetie.runtime.decoding.sampling import Sampling
from edgetie.runtime.decoding.seq2seq_decoder import Seq2SeqDecoder
from edgetie.runtime.session import Session, open_session

PROMPTS = [[3, 90, 14, 15, 92], [65], [35, 8, 9, 79, 32, 38, 46, 26]]


def tokens_of(
    session: Session, prompts: Sequence[Sequence[int]], **options: object
) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    for step in generate(session, prompts, **options):  # type: ignore[arg-type]
        for row, tokens in enumerate(rows):
            if step.active[row]:
                tokens.append(int(step.tokens[row]))
    return rows


DECODERS = {
    Decoder: tiny.write_packed,
    FixedShapeDecoder: bag.write_fixed,
    Seq2SeqDecoder: bag.write_seq2seq,
}


@pytest.mark.parametrize("kind", DECODERS)
def test_each_model_has_its_decoder(kind: type[TokenDecoder], tmp_path: Path) -> None:
    decoder = make_decoder(open_session(DECODERS[kind](tmp_path)), 1, 3, 2)
    assert type(decoder) is kind
    for name in ("reset", "rewind", "prefill", "step"):
        expected = inspect.signature(getattr(Decoder, name))
        assert inspect.signature(getattr(kind, name)).parameters == expected.parameters


@pytest.fixture
def chat_bundle(tmp_path: Path) -> Path:
    return tiny.write_chat_bundle(tmp_path / "bundle")


@pytest.fixture
def session(chat_bundle: Path) -> Session:
    return open_session(chat_bundle, threads=1)


def test_greedy_batch_equals_naive(session: Session) -> None:
    got = tokens_of(session, PROMPTS, max_new_tokens=12, stop_token_ids=frozenset())
    assert got == [tiny.naive_greedy(prompt, 12) for prompt in PROMPTS]


def test_sequences_stop_separately(session: Session) -> None:
    free = [tiny.naive_greedy(prompt, 12) for prompt in PROMPTS]
    stop = free[1][4]
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in free]
    assert [len(row) for row in expected] != [12, 12, 12]
    got = tokens_of(session, PROMPTS, max_new_tokens=12, stop_token_ids=frozenset([stop]))
    assert got == expected


def test_generation_ends_when_every_sequence_has(session: Session) -> None:
    first = tiny.naive_greedy(PROMPTS[0], 1)[0]
    steps = list(
        generate(session, [PROMPTS[0]] * 2, max_new_tokens=20, stop_token_ids=frozenset([first]))
    )
    assert len(steps) == 1
    assert steps[0].stopped.all()


def test_the_models_longest_sequence_ends_generation(session: Session) -> None:
    got = tokens_of(session, [PROMPTS[0]], max_new_tokens=100, stop_token_ids=frozenset())
    # the token after the last position needs no room of its own
    assert len(got[0]) == tiny.POSITIONS - len(PROMPTS[0]) + 1


def test_prompts_that_cannot_be_continued(session: Session) -> None:
    for prompts in ([], [[]], [[1], []]):
        with pytest.raises(EdgetieError, match="empty"):
            next(generate(session, prompts, max_new_tokens=1))
    with pytest.raises(EdgetieError, match="accepts 48 tokens, not 49"):
        next(generate(session, [[1] * 49], max_new_tokens=1))
    for token in (-5, 10**6):
        with pytest.raises(EdgetieError, match=f"token {token} of a prompt, but the model has"):
            next(generate(session, [[1, token]], max_new_tokens=1))
    with pytest.raises(EdgetieError, match="max_new_tokens=-1: must"):
        next(generate(session, [[1]], max_new_tokens=-1))
    for wrong in ({"temperature": math.nan}, {"temperature": 1, "repetition_penalty": math.nan}):
        with pytest.raises(EdgetieError, match="nan: must be"):
            Sampling(**wrong)


def test_suppressed_tokens_are_not_generated(session: Session) -> None:
    free = tiny.naive_greedy(PROMPTS[0], 3)
    signature = session.bundle.manifest.signature
    signature.begin_suppressed_token_ids = [free[0]]
    first, *_ = tokens_of(session, [PROMPTS[0]], max_new_tokens=1, stop_token_ids=frozenset())[0]
    assert first == int(np.argsort(tiny.naive_logits(PROMPTS[0])[-1])[-2])
    signature.begin_suppressed_token_ids, signature.suppressed_token_ids = [], [free[1]]
    got = tokens_of(session, [PROMPTS[0]], max_new_tokens=2, stop_token_ids=frozenset())[0]
    logits = tiny.naive_logits([*PROMPTS[0], free[0]])[-1]
    assert got == [free[0], int(np.argsort(logits)[-2])]
    signature.begin_suppressed_token_ids = [2**31 - 1]
    signature.suppressed_token_ids = [tiny.VOCAB, free[1]]  # tokens that the model lacks
    again = tokens_of(session, [PROMPTS[0]], max_new_tokens=2, stop_token_ids=frozenset())[0]
    assert again == got


def test_sampling_repeats_with_its_seed(session: Session) -> None:
    runs = [
        tokens_of(
            session, PROMPTS, max_new_tokens=10, sampling=Sampling(2.0), seed=seed,
            stop_token_ids=frozenset(),
        )
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert runs[0] == runs[1] != runs[2]


def test_repetition_penalty_sees_prompt_and_output(session: Session) -> None:
    sampling = Sampling(repetition_penalty=1e6)
    [row] = tokens_of(
        session, [PROMPTS[0]], max_new_tokens=30, sampling=sampling, stop_token_ids=frozenset()
    )
    positive = [token for token in row if token not in PROMPTS[0]]
    assert len(set(positive)) == len(row)


def test_stop_tokens_come_from_manifest_or_configuration(chat_bundle: Path) -> None:
    assert open_bundle(chat_bundle).manifest.signature.eos_token_ids == [tiny.STOP]
    bare = chat_bundle / "model.onnx"
    assert open_bundle(bare).manifest.signature.eos_token_ids == []
    (chat_bundle / "config.json").write_text('{"eos_token_id": 9}', encoding="utf-8")
    assert open_bundle(bare).manifest.signature.eos_token_ids == [9]
    generation = chat_bundle / "generation_config.json"
    generation.write_text('{"eos_token_id": [4, 5]}', encoding="utf-8")
    assert open_bundle(bare).manifest.signature.eos_token_ids == [4, 5]
