"""Render chat templates, the Jinja programs that turn messages into a model's prompt."""

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

_JSON_OPTIONS = ("ensure_ascii", "indent", "separators", "sort_keys")  # positional, in this order

PLACEHOLDER = "\ue000"
"""A character for private use, which no template changes."""


class _GenerationBlock(Extension):
    """``{% generation %}`` … ``{% endgeneration %}`` marks text to train on; it is kept."""

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

    Templates of multimodal models expect a message's content as a list of parts
    (``{"type": "text", "text": …}``) and would leave out a string: they get parts.

    Args:
        template: the Jinja source.
        messages: ``{"role": ..., "content": ...}`` each.
        add_generation_prompt: end with the beginning of the assistant's answer.
        special_tokens: such as ``bos_token``, by name.

    Raises:
        BundleError: if the template is not valid Jinja, or refuses the messages.
    """
    environment = ImmutableSandboxedEnvironment(  # a template comes with a model: do not trust it
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    # as transformers does: unlike Jinja's own filter, without escaping HTML
    environment.filters["tojson"] = lambda value, *options, **named: json.dumps(
        value, **{"ensure_ascii": False} | dict(zip(_JSON_OPTIONS, options, strict=False)) | named
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)

    def render(messages: Sequence[Mapping[str, Any]]) -> str:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **(special_tokens or {}),
        )

    try:
        if all(isinstance(message.get("content"), str) for message in messages):
            marked = [{**message, "content": PLACEHOLDER} for message in messages]
            if PLACEHOLDER not in render(marked) and PLACEHOLDER in render(_in_parts(marked)):
                messages = _in_parts(messages)
        return render(messages)
    except Exception as error:  # a template that does not fit its messages may raise anything
        raise BundleError(
            f"chat template: {' '.join(str(error).split())}; change the messages or give text"
        ) from error


def _in_parts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
