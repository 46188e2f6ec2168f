"""The options that say what an answer must be: ``--json-schema``, ``--grammar``, ``--choices``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetie.errors import ConstraintError

from .common import F, add_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgetie.runtime.decoding.constraint import Constraint
    from edgetie.runtime.decoding.text_generation import Completion
    from edgetie.runtime.text.tokenizer import Tokenizer


def constraint_options(function: F) -> F:
    """Add the options to a command, each as a keyword of its name."""
    return add_options(
        function,
        click.option(
            "--json-schema", type=click.Path(),
            help="The answer is JSON that the JSON schema in this file describes.",
        ),
        click.option(
            "--grammar", type=click.Path(),
            help="The answer is a text of the grammar in this file, in Lark's format or GBNF.",
        ),
        click.option("--choices", help="The answer is one of these texts: yes,no,unknown."),
    )  # fmt: skip


def make_constraint(
    tokenizer: Tokenizer, json_schema: str | None, grammar: str | None, choices: str | None
) -> Constraint | None:
    """Make the constraint that the options ask for; errors name the option and its value."""
    from edgetie.runtime.decoding.constraint import Constraint

    options = {"json_schema": json_schema, "grammar": grammar, "choices": choices}
    present = {name: value for name, value in options.items() if value is not None}
    if len(present) > 1:
        raise click.UsageError("give only one of --json-schema, --grammar and --choices")
    for name, value in present.items():
        try:
            if name == "json_schema":
                return Constraint.json_schema(_read_json(value), tokenizer)
            if name == "grammar":
                return Constraint.grammar(_read_text("--grammar", value), tokenizer)
            texts = [text.strip() for text in value.split(",")]
            return Constraint.choices(texts, tokenizer)
        except ConstraintError as error:
            raise ConstraintError(error.message, parameter=name, value=value) from error
    return None


def require_complete(completions: Sequence[Completion], max_new_tokens: int) -> None:
    """Fail with exit code 1 if an answer ended before it was what it must be."""
    for completion in completions:
        if completion.stop_reason == "length":
            count = len(completion.tokens)
            enough = "raise --max-new-tokens" if count == max_new_tokens else "shorten the prompt"
            raise click.ClickException(
                f"the answer is incomplete after {count} tokens; {enough}, or ask for less"
            )


def _read_json(path: str) -> dict[str, object]:
    try:
        schema: dict[str, object] = json.loads(_read_text("--json-schema", path))
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--json-schema {path}: not JSON ({error})") from error
    return schema


def _read_text(option: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{option} {path}: not UTF-8 text ({error})") from error
