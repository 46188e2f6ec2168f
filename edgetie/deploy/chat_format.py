"""Read the texts of a conversation off a chat template, for programs that have no Jinja."""

import re
from dataclasses import dataclass
from pathlib import Path

from edgetie.errors import BundleError
from edgetie.runtime.text.chat import PLACEHOLDER
from edgetie.runtime.text.tokenizer import Tokenizer

_ANSWER = "\ue001"
"""Stands for an answer as :data:`PLACEHOLDER` does for a prompt."""


@dataclass(frozen=True)
class ChatFormat:
    """What a chat template writes around prompts and answers.

    A conversation is ``before_prompt``, prompt, ``before_answer``, answer, ``next_prompt``, prompt,
    ``before_answer``, … and, after the last prompt, ``after_prompt``.

    Attributes:
        before_prompt: before the first prompt.
        after_prompt: after the last prompt, up to the answer to come.
        before_answer: between a prompt and an earlier answer.
        next_prompt: between an answer and the next prompt; ``None`` if prompts have no history.
        trim_prompt: whether spaces around a prompt are removed.
        trim_answer: whether spaces around an earlier answer are removed.
        notes: what the template does and a starter does not.
    """

    before_prompt: str = ""
    after_prompt: str = ""
    before_answer: str = ""
    next_prompt: str | None = None
    trim_prompt: bool = False
    trim_answer: bool = False
    notes: tuple[str, ...] = ()


def read_chat_format(directory: Path, tokenizer: Tokenizer) -> ChatFormat:
    """Read the format of a conversation off what the template makes of placeholders.

    Args:
        directory: of the bundle, for errors.
        tokenizer: of the bundle.

    Raises:
        BundleError: if the template does not write a single prompt once.
    """
    template = tokenizer.chat_template
    if template is None:
        return ChatFormat()
    parts = _parts(tokenizer, PLACEHOLDER)
    if parts is None:
        raise BundleError(
            f"{directory}: its chat template does not write the user's text once, which starters "
            "rely on; run it with edgetie generate"
        )
    before, after = parts
    notes = []
    if "strftime_now" in template:
        notes.append("its chat template writes the date; the starter repeats today's")
    trim_prompt, changes = _edits(tokenizer, 0)
    if changes:
        notes.append("its chat template changes the user's text; the starter does not")
    between = _between_turns(tokenizer, before, after)
    if between is None:
        notes.append(
            "its chat template does not write earlier turns next to each other; the starter "
            "answers each prompt by itself"
        )
        return ChatFormat(before, after, trim_prompt=trim_prompt, notes=tuple(notes))
    trim_answer, changes = _edits(tokenizer, 1)
    if changes:
        notes.append("its chat template changes earlier answers; the starter does not")
    return ChatFormat(before, after, *between, trim_prompt, trim_answer, tuple(notes))


def _between_turns(tokenizer: Tokenizer, before: str, after: str) -> tuple[str, str] | None:
    """The texts between a prompt and its answer, and between that and the next prompt."""
    parts = _parts(tokenizer, PLACEHOLDER, _ANSWER, PLACEHOLDER)
    if parts is None:
        return None
    between = parts[1:3]
    longer = _parts(tokenizer, *(PLACEHOLDER, _ANSWER) * 2, PLACEHOLDER)
    if parts != [before, *between, after] or longer != [before, *between * 2, after]:
        return None
    return between[0], between[1]


def _parts(tokenizer: Tokenizer, *turns: str) -> list[str] | None:
    """Render turns, each with one placeholder; returns the texts between these, if each is once."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    try:
        text = tokenizer.chat_prompt(messages)
    except BundleError:
        if len(turns) > 1:  # it may refuse a history
            return None
        raise
    places = [c for c in text if c in PLACEHOLDER + _ANSWER]
    if places != [c for c in "".join(turns) if c in PLACEHOLDER + _ANSWER]:
        return None
    return re.split(f"[{PLACEHOLDER}{_ANSWER}]", text)


def _edits(tokenizer: Tokenizer, index: int) -> tuple[bool, bool]:
    """Whether the template trims the turn at ``index``, and whether it changes it otherwise."""
    turns = [PLACEHOLDER, _ANSWER, PLACEHOLDER][: index * 2 + 1]

    def keeps(before: str, after: str, trims: bool) -> bool:
        parts = _parts(tokenizer, *turns)
        assert parts is not None
        parts[index] += before.lstrip() if trims else before
        parts[index + 1] = (after.rstrip() if trims else after) + parts[index + 1]
        text = before + turns[index] + after
        return _parts(tokenizer, *turns[:index], text, *turns[index + 1 :]) == parts

    trims = keeps(" ", "\n", trims=True)
    texts = (" Aa", "aA\n"), ("<think>a</think>", "")
    return trims, not all(keeps(*text, trims) for text in texts)
