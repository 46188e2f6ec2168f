"""Chat templates: Jinja programs that turn messages into a model's prompt.

They come with a model and are not trusted: they run in Jinja's immutable sandbox, with the same
few extras that transformers gives them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgetie.errors import BundleError

PLACE = "\ue000"
"""A character for private use, of which no template makes anything."""


_FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, LookupError,
    AttributeError,
)  # fmt: skip
"""What a template that does not fit its messages ends in."""


class _GenerationBlock(Extension):
    """``{% generation %}`` … ``{% endgeneration %}`` marks text a model is trained on; it stays."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    special_tokens: Mapping[str, str] | None = None,
) -> str:
    """Render a chat template.

    Templates of models that also see or hear take a message's content as a list of parts
    (``{"type": "text", "text": …}``) and would leave out a string: they are given parts.

    Args:
        template: the Jinja source.
        messages: ``{"role": ..., "content": ...}`` each.
        add_generation_prompt: end with the beginning of the assistant's answer.
        special_tokens: such as ``bos_token``, by name.

    Raises:
        BundleError: if the template is no valid Jinja, or refuses the messages.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def render(given: Sequence[Mapping[str, Any]]) -> str:
        return environment.from_string(template).render(
            messages=[dict(message) for message in given],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **(special_tokens or {}),
        )

    try:
        if all(isinstance(message.get("content"), str) for message in messages):
            marked = [{**message, "content": PLACE} for message in messages]
            if PLACE not in render(marked) and PLACE in render(_in_parts(marked)):
                messages = _in_parts(messages)
        return render(messages)
    except _FAILURES as error:
        raise BundleError(
            f"chat template: {' '.join(str(error).split())}; change the messages or use --no-chat"
        ) from error


def _in_parts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # unlike Jinja's own filter, this one does not escape HTML
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
