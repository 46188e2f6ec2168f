"""Answers with a constraint: a model that knows nothing gives only what the constraint allows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import bag_models as bag
import numpy as np
import pytest
import runtime_models as tiny
from json_schemas import QUESTIONS, Schema, array, conforms, integer, record

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.manifest import write_manifest
from edgetie.errors import ConstraintError, EdgetieError
from edgetie.runtime.decoding.constraint import ConstrainedBatch, Constraint
from edgetie.runtime.decoding.conversation import Conversation
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.decoding.sampling import Sampling
from edgetie.runtime.decoding.text_generation import Completion, generate_text
from edgetie.runtime.session import Session, open_session
from edgetie.runtime.text.tokenizer import Tokenizer

ROOM = 400
PERSON = record(name={"type": "string", "maxLength": 8}, age=integer(0, 120))
LISTS = record(even=array(integer(-5, 5), 0, 3), kind={"enum": ["é", 'say "x"', "a\\b\n", None]})
RECIPE = """
start: step ("; " step)* "."
step: ("stir" | "bake" | "wait") " " /[1-9][0-9]?/ " min"
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Tokenizer]:
    """A model with random weights and room for long answers."""
    directory = tiny.write_chat_bundle(tmp_path_factory.mktemp("random") / "bundle")
    manifest = open_bundle(directory).manifest
    longer = replace(manifest.signature, max_positions=2 * ROOM)
    write_manifest(directory, replace(manifest, signature=longer))
    session = open_session(directory, threads=1)
    return session, Tokenizer.from_bundle(session.bundle)


def answer(opened: tuple[Session, Tokenizer], constraint: Constraint, **options: Any) -> Completion:
    options = {"max_new_tokens": ROOM, **options}
    *_, last = generate_text(*opened, ["a"], constraint=constraint, **options)
    assert last.completion is not None
    return last.completion


@pytest.mark.parametrize("schema", [PERSON, LISTS, *(schema for _, schema in QUESTIONS)])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_json_parses_and_is_what_the_schema_describes(
    opened: tuple[Session, Tokenizer], schema: Schema, temperature: float
) -> None:
    constraint = Constraint.json_schema(schema, opened[1])
    for seed in range(3 if temperature else 1):
        done = answer(opened, constraint, sampling=Sampling(temperature), seed=seed)
        assert done.stop_reason in ("complete", "stop_token")
        assert conforms(json.loads(done.text), schema)


def test_an_answer_is_one_of_the_choices(opened: tuple[Session, Tokenizer]) -> None:
    texts = ["yes", "no", "naïve 日本 😀", 'a "quoted"\n\\line', "yes, but"]
    constraint = Constraint.choices(texts, opened[1])
    sampling = Sampling(30.0)  # nearly uniform
    drawn = {answer(opened, constraint, sampling=sampling, seed=seed).text for seed in range(60)}
    assert drawn == set(texts)
    first, again = (answer(opened, constraint, sampling=sampling, seed=7) for _ in range(2))
    assert first.tokens == again.tokens


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (RECIPE, r"((stir|bake|wait) [1-9]\d? min(; |\.$))+"),
        ('root ::= "<" [a-c]+ ">" | "none"', r"<[abc]+>|none"),
    ],
    ids=["lark", "gbnf"],
)
def test_an_answer_is_a_text_of_the_grammar(
    opened: tuple[Session, Tokenizer], grammar: str, pattern: str
) -> None:
    constraint = Constraint.grammar(grammar, opened[1])
    for seed in range(5):
        done = answer(opened, constraint, sampling=Sampling(1.5), seed=seed)
        assert done.stop_reason != "length"
        assert re.fullmatch(pattern, done.text)


def test_sequences_of_a_batch_have_their_own_place(opened: tuple[Session, Tokenizer]) -> None:
    session, tokenizer = opened
    prompts = ["a", "once upon a time", "the user"]
    constraint = Constraint.json_schema(PERSON, tokenizer)
    chunks = generate_text(
        session, tokenizer, prompts, max_new_tokens=ROOM, constraint=constraint,
        sampling=Sampling(2.0), seed=1,
    )  # fmt: skip
    texts = [chunk.completion.text for chunk in chunks if chunk.completion is not None]
    assert len(set(texts)) == len(texts) == 3
    assert all(conforms(json.loads(text), PERSON) for text in texts)


def test_an_answer_without_room_is_incomplete(opened: tuple[Session, Tokenizer]) -> None:
    constraint = Constraint.json_schema(PERSON, opened[1])
    whole = answer(opened, constraint)
    assert whole.stop_reason == "complete"
    exact = answer(opened, constraint, max_new_tokens=len(whole.tokens))
    assert (exact.text, exact.stop_reason) == (whole.text, "complete")
    cut = answer(opened, constraint, max_new_tokens=len(whole.tokens) - 1)
    assert cut.stop_reason == "length"
    assert whole.text.startswith(cut.text)


def test_a_model_stops_only_where_an_answer_is_complete(opened: tuple[Session, Tokenizer]) -> None:
    session, tokenizer = opened
    constraint = Constraint.grammar("start: /[0-9]{3,}/", tokenizer)
    digits = {token for digit in "0123456789" for token in tokenizer.encode(digit)}
    ends = frozenset(range(tiny.VOCAB)) - digits  # it would stop at once
    tokens = [
        int(step.tokens[0])
        for step in generate(
            session, [[3]], max_new_tokens=9, stop_token_ids=ends, constraint=constraint
        )
    ]
    assert re.fullmatch(r"\d{3,}", tokenizer.decode(tokens[:-1]))
    *_, last = generate(
        session, [[3]], max_new_tokens=9, stop_token_ids=frozenset(), constraint=constraint
    )
    assert last.active.all()
    assert not last.stopped.any()


def test_turns_of_a_conversation_have_constraints(opened: tuple[Session, Tokenizer]) -> None:
    conversation = Conversation(*opened)
    for texts in (["yes", "no"], ["red", "blue"]):
        constraint = Constraint.choices(texts, opened[1])
        *_, last = conversation.ask("which?", max_new_tokens=20, constraint=constraint)
        assert last.completion is not None
        assert last.completion.text in texts
        assert conversation.messages[-1]["content"] == last.completion.text


def test_masking_leaves_other_sequences_and_the_given_logits_alone(
    opened: tuple[Session, Tokenizer],
) -> None:
    tokenizer = opened[1]
    batch = Constraint.choices(["a"], tokenizer).start(2, [tiny.STOP])
    assert isinstance(batch, ConstrainedBatch)
    logits = np.zeros((2, tiny.VOCAB + 64), np.float32)  # rounded up, as many models do
    masked = batch.mask(logits, np.array([True, False]))
    assert np.flatnonzero(np.isfinite(masked[0])).tolist() == tokenizer.encode("a")
    assert np.isfinite(masked[1]).all()
    assert np.isfinite(logits).all()


def test_a_model_without_the_tokens_is_refused(opened: tuple[Session, Tokenizer]) -> None:
    batch = Constraint.choices(["a"], opened[1]).start(1, [])
    logits = np.full((1, tiny.VOCAB), -np.inf, np.float32)
    with pytest.raises(ConstraintError, match="no token that can follow"):
        batch.mask(logits, np.array([True]))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {}}, 'Unimplemented keys: ["not"]'),
        ({"type": "text"}, "Invalid type: text"),
        ({"enum": []}, "Unsatisfiable schema"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"const": {1, 2}}, "not JSON serializable"),
        ({"const": float("nan")}, "not JSON compliant"),
        ([1], "an object, not a list"),
    ],
)
def test_schemas_that_cannot_be_used(
    opened: tuple[Session, Tokenizer], schema: Any, message: str
) -> None:
    with pytest.raises(ConstraintError, match=re.escape(message)) as caught:
        Constraint.json_schema(schema, opened[1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "No 'root' rule"),
        ("start: x", 'unknown name: "x"'),
        ('start: "a" "', "lexer error"),
        ("start: " + "(" * 10_000, "too deeply nested"),
        ("root ::= x", "Rule 'x' not found"),
        ("root ::= " + "(" * 10_000, "recursion"),
    ],
    ids=["empty", "unknown", "open", "deep", "gbnf unknown", "gbnf deep"],
)
def test_grammars_that_cannot_be_used(
    opened: tuple[Session, Tokenizer], grammar: str, message: str
) -> None:
    with pytest.raises(ConstraintError, match=re.escape(message)) as caught:
        Constraint.grammar(grammar, opened[1])
    assert "\n" not in str(caught.value)


def test_a_grammar_without_an_end_is_an_error(opened: tuple[Session, Tokenizer]) -> None:
    constraint = Constraint.grammar('start: "a" start', opened[1])
    with pytest.raises(ConstraintError, match="Too many items"):
        answer(opened, constraint)


@pytest.mark.parametrize("texts", [[], ["a", ""], "ab"])
def test_choices_are_texts(opened: tuple[Session, Tokenizer], texts: Any) -> None:
    with pytest.raises(ConstraintError, match="choices: must be a list of texts"):
        Constraint.choices(texts, opened[1])


def test_stop_strings_do_not_cut_a_constrained_answer(opened: tuple[Session, Tokenizer]) -> None:
    constraint = Constraint.choices(["a"], opened[1])
    with pytest.raises(EdgetieError, match="stop_strings: would cut"):
        answer(opened, constraint, stop_strings=["a"])


def test_a_tokenizer_of_words_is_refused() -> None:
    tokenizer = Tokenizer(bag.word_tokenizer(), {}, None)
    with pytest.raises(ConstraintError, match=r"tokenizer\.json: has no special token"):
        Constraint.choices(["a"], tokenizer)
    tokenizer.backend.add_special_tokens(["<end>"])
    tokenizer = Tokenizer(tokenizer.backend, {}, None)
    with pytest.raises(ConstraintError, match=r"tokenizer\.json: llguidance does not support"):
        Constraint.choices(["a"], tokenizer)


def test_without_the_library_the_error_says_how_to_install_it() -> None:
    script = (
        "import sys; sys.modules['llguidance'] = None\n"
        "import edgetie\n"
        "try: edgetie.Constraint.choices(['a'], None)\n"
        "except edgetie.ConstraintError as error: print(error)"
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 'pip install ".[grammar]"' in run.stdout


@pytest.mark.slow
def test_the_real_model_answers_twenty_questions_in_json(real_int8: Path) -> None:
    session = open_session(real_int8)
    tokenizer = Tokenizer.from_bundle(session.bundle)
    valid = []
    for question, schema in QUESTIONS:
        constraint = Constraint.json_schema(schema, tokenizer)
        conversation = Conversation(session, tokenizer)
        *_, last = conversation.ask(question, max_new_tokens=128, constraint=constraint)
        assert last.completion is not None
        valid.append(conforms(json.loads(last.completion.text), schema))
    assert valid == [True] * 20
