"""Conversations put together from a template's parts, against the template itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from runtime_models import CHAT_TEMPLATE, byte_tokenizer

from edgetie.deploy.chat_format import read_chat_format
from edgetie.errors import BundleError
from edgetie.runtime.text.tokenizer import Tokenizer

WITH_SYSTEM = "{{ bos_token }}[sys]be kind[/sys]" + CHAT_TEMPLATE
TRIMS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PARTS = (
    "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}<{{ p.text }}>"
    "{% endif %}{% endfor %}{% endfor %}!"
)
NO_HISTORY = (
    "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    "<{{ messages[0].content }}>"
)
LAST_ONLY = "<{{ messages[-1].content }}>"
COUNTS = "{% for m in messages %}{{ loop.index }}:{{ m.content }};{% endfor %}"
REASONING = (
    "{% for m in messages %}<{{ m.content.split('</think>')[-1] if m.role == 'assistant' "
    "else m.content }}>{% endfor %}"
)
DATE = "{{ strftime_now('%Y') }}{% for m in messages %}<{{ m.content %s }}>{% endfor %}"


def tokenizer(template: str | None) -> Tokenizer:
    return Tokenizer(byte_tokenizer(), {"bos_token": "<|im_start|>"}, template)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, WITH_SYSTEM, TRIMS, PARTS])
def test_conversations_are_those_of_the_template(template: str) -> None:
    chat = read_chat_format(Path("bundle"), tokenizer(template))
    assert chat.next_prompt is not None
    assert chat.notes == ()
    turns, text, messages = [" hi\n", " hello ", "b", "c", "d"], chat.before_prompt, []
    for index, turn in enumerate(turns):
        role = ("user", "assistant")[index % 2]
        messages.append({"role": role, "content": turn})
        trims = chat.trim_prompt if role == "user" else chat.trim_answer
        text += turn.strip() if trims else turn
        if role == "user":
            assert text + chat.after_prompt == tokenizer(template).chat_prompt(messages)
        text += chat.before_answer if role == "user" else chat.next_prompt


def test_models_without_a_template_have_no_history() -> None:
    assert read_chat_format(Path("bundle"), tokenizer(None)).next_prompt is None


@pytest.mark.parametrize("template", [NO_HISTORY, LAST_ONLY, COUNTS])
def test_templates_without_a_history_that_starters_can_write(template: str) -> None:
    chat = read_chat_format(Path("bundle"), tokenizer(template))
    assert chat.next_prompt is None
    (note,) = chat.notes
    assert "answers each prompt by itself" in note


@pytest.mark.parametrize(
    ("template", "notes", "trims"),
    [
        (DATE.replace("%s", ""), ["the date"], False),
        (DATE.replace("%s", "| trim"), ["the date"], True),
        (DATE.replace("%s", "| upper"), ["the date", "user's text", "earlier answers"], False),
        (REASONING, ["earlier answers"], False),
    ],
)
def test_what_starters_do_not_do_is_noted(template: str, notes: list[str], trims: bool) -> None:
    chat = read_chat_format(Path("bundle"), tokenizer(template))
    assert len(chat.notes) == len(notes)
    assert all(part in note for part, note in zip(notes, chat.notes, strict=True))
    assert (chat.trim_prompt, chat.trim_answer) == (trims, trims)


@pytest.mark.parametrize("template", ["{{ messages | length }}", "{{ messages[0].content * 2 }}"])
def test_templates_that_do_not_write_the_prompt_once(template: str) -> None:
    with pytest.raises(BundleError, match="bundle: its chat template does not write the user's"):
        read_chat_format(Path("bundle"), tokenizer(template))
