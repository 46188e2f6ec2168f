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
    """Render a chat template as transformers does.

    Args:
        template: the Jinja source.
        messages: ``{"role": ..., "content": ...}`` each; the content is a text or, for many
            templates of multimodal models, a list of parts (``{"type": "text", "text": …}``).
        add_generation_prompt: end with the beginning of the assistant's answer.
        special_tokens: such as ``bos_token``, by name.

    Raises:
        BundleError: if the template is not valid Jinja, or refuses the messages.
    """
    environment = _environment()
    # as transformers does: unlike Jinja's own filter, without escaping HTML
    environment.filters["tojson"] = lambda value, *options, **named: json.dumps(
        value, **{"ensure_ascii": False} | dict(zip(_JSON_OPTIONS, options, strict=False)) | named
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)

    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **(special_tokens or {}),
        )
    except Exception as error:  # a template that does not fit its messages may raise anything
        raise BundleError(
            f"chat template: {' '.join(str(error).split())}; change the messages or give text"
        ) from error


def template_texts(template: str) -> list[str]:
    """List the texts and constants in a chat template, from which it makes prompts.

    Raises:
        BundleError: if the template is not valid Jinja.
    """
    try:
        tree = _environment().parse(template)
    except jinja2.TemplateError as error:
        raise BundleError(f"chat template: {' '.join(str(error).split())}; repair it") from error
    constants = [node.value for node in tree.find_all(nodes.Const)]
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    return [*texts, *(value for value in constants if isinstance(value, str))]


def _environment() -> ImmutableSandboxedEnvironment:
    """Make what runs templates. They come with models and are not trusted."""
    return ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
    )


def with_parts(
    template: str, messages: Sequence[Mapping[str, Any]], special_tokens: Mapping[str, str]
) -> list[Mapping[str, Any]]:
    """Make each text a list of one part, if the template writes parts but leaves out texts.

    Raises:
        BundleError: if the template is not valid Jinja, or refuses the messages.
    """
    if not all(isinstance(message.get("content"), str) for message in messages):
        return [*messages]
    marked = [{**message, "content": PLACEHOLDER} for message in messages]

    def is_written(messages: Sequence[Mapping[str, Any]]) -> bool:
        return PLACEHOLDER in render_chat(template, messages, special_tokens=special_tokens)

    reads_parts_only = not is_written(marked) and is_written(_in_parts(marked))
    return _in_parts(messages) if reads_parts_only else [*messages]


def _in_parts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
