"""Conversations: the answers are those to whole prompts, and turns read what is new."""

from __future__ import annotations

import shutil
from pathlib import Path

import bag_models as bag
import pytest
import runtime_models as tiny

from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.decoding.conversation import Conversation
from edgetie.runtime.decoding.text_generation import Completion, generate_text
from edgetie.runtime.session import Session, open_session
from edgetie.runtime.text.tokenizer import Tokenizer

SHORT_TEMPLATE = """{%- for m in messages -%}
{{ m.content }}{% if m.role != 'assistant' %}<|im_end|>{% endif %}
{%- endfor -%}"""


def opened(directory: Path) -> tuple[Session, Tokenizer]:
    session = open_session(directory)
    return session, Tokenizer.from_bundle(session.bundle)


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """A bundle with a short template, as the model takes 48 tokens."""
    directory = tiny.write_chat_bundle(tmp_path / "chat")
    (directory / "chat_template.jinja").write_text(SHORT_TEMPLATE, encoding="utf-8")
    return directory


def ask(conversation: Conversation, text: str) -> Completion:
    *_, last = conversation.ask(text, max_new_tokens=4)
    assert last.completion is not None
    return last.completion


def whole_prompt(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
    return tokenizer.encode(tokenizer.apply_chat_template(messages), add_special_tokens=False)


def answer_to_all(session: Session, tokenizer: Tokenizer, messages: list[dict[str, str]]) -> str:
    ids = whole_prompt(tokenizer, messages)
    *_, last = generate_text(session, tokenizer, [ids], max_new_tokens=4)
    assert last.completion is not None
    return last.completion.text


@pytest.mark.parametrize("plain", [False, True])
def test_answers_are_those_to_all_messages(chat: Path, plain: bool, tmp_path: Path) -> None:
    if plain:  # a cache that grows
        tiny.write_plain(tmp_path / "plain")
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(chat / name, tmp_path / "plain" / name)
    session, tokenizer = opened(tmp_path / "plain" if plain else chat)
    conversation = Conversation(session, tokenizer, system="once")
    for text in ("hello", "the user", "said"):
        completion = ask(conversation, text)
        *before, answer = conversation.messages
        assert answer == {"role": "assistant", "content": completion.text}
        assert before[-1] == {"role": "user", "content": text}
        assert completion.text == answer_to_all(session, tokenizer, before)
    assert len(conversation.messages) == 7


@pytest.mark.parametrize("in_place", [True, False])
def test_a_turn_reads_what_is_new_also_if_an_answer_has_other_tokens(
    chat: Path, in_place: bool
) -> None:
    session, tokenizer = opened(chat)
    session.cache_in_place = in_place
    conversation = Conversation(session, tokenizer)
    first = ask(conversation, "hello")
    assert tokenizer.encode(first.text) == first.tokens
    second = ask(conversation, "the user")
    ids = whole_prompt(tokenizer, conversation.messages[:-1])
    assert first.prompt_tokens == 3
    assert second.prompt_tokens == len(ids) - first.prompt_tokens - len(first.tokens) + 1
    assert tokenizer.encode(second.text) != second.tokens, "it is not UTF-8"
    third = ask(conversation, "said")
    asked = conversation.messages[:-1]
    whole, before = whole_prompt(tokenizer, asked), [*ids, *second.tokens]
    pairs = zip(whole, before, strict=False)
    common = next(index for index, (one, other) in enumerate(pairs) if one != other)
    assert common >= len(ids)
    assert third.prompt_tokens == len(whole) - (common if in_place else 0)
    assert third.text == answer_to_all(session, tokenizer, asked)


def test_an_answer_that_is_stopped_is_forgotten(chat: Path) -> None:
    session, tokenizer = opened(chat)
    conversation = Conversation(session, tokenizer)
    stopped = conversation.ask("hello", max_new_tokens=20)
    next(stopped)
    stopped.close()
    assert conversation.messages == []
    assert ask(conversation, "the user").text == answer_to_all(
        session, tokenizer, conversation.messages[:-1]
    )


def test_a_conversation_ends_where_the_model_does(chat: Path) -> None:
    session, tokenizer = opened(chat)
    conversation = Conversation(session, tokenizer)
    with pytest.raises(EdgetieError, match=r"and there is room for 48; start a new"):
        ask(conversation, "hello there " * 30)
    assert ask(conversation, "hello").prompt_tokens == 3


def test_models_that_hold_no_conversation_are_refused(chat: Path, tmp_path: Path) -> None:
    session, tokenizer = opened(chat)
    tokenizer.chat_template = None
    with pytest.raises(BundleError, match="has no chat template"):
        Conversation(session, tokenizer)
    tokenizer.chat_template = SHORT_TEMPLATE
    with pytest.raises(BundleError, match="has an encoder, which reads one prompt"):
        Conversation(open_session(bag.write_seq2seq(tmp_path / "seq2seq")), tokenizer)
