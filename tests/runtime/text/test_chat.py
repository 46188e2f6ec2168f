"""Chat templates: parts of messages, and templates that do not fit."""

from __future__ import annotations

from datetime import datetime

import pytest

from edgetie.errors import BundleError
from edgetie.runtime.text.chat import render_chat, template_texts, with_parts

MESSAGES = [{"role": "user", "content": "why <now>?"}]
PARTS = (
    "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}<{{ p.text }}>"
    "{% endif %}{% endfor %}{% endfor %}!"
)


def test_content_is_given_as_it_is() -> None:
    """A text has no parts, so a template that loops over them writes none, as in transformers."""
    assert render_chat(PARTS, MESSAGES) == "!"
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "why?"}]}]
    assert render_chat(PARTS, parts) == "<why?>!"


def test_texts_become_parts_for_templates_that_read_nothing_else() -> None:
    in_parts = [{"role": "user", "content": [{"type": "text", "text": "why <now>?"}]}]
    assert with_parts(PARTS, MESSAGES, {}) == in_parts
    assert with_parts(PARTS, in_parts, {}) == in_parts
    either = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% endif %}"
    assert with_parts(either + "{% endfor %}", MESSAGES, {}) == MESSAGES


def test_texts_in_a_template() -> None:
    template = "<s>{% if m.role == 'user' %}{{ '[INST] ' + m.content }}{% endif %}{# none #}"
    assert {"<s>", "user", "[INST] "} == {*template_texts(template)}
    assert template_texts("{% generation %}a{% endgeneration %}") == ["a"]
    with pytest.raises(BundleError, match="chat template: "):
        template_texts("{% if %}")


def test_globals_and_filters() -> None:
    assert render_chat("{{ strftime_now('%Y') }}", MESSAGES) == str(datetime.now().year)
    assert render_chat("{{ {'b': '<ä>', 'a': 1} | tojson }}", MESSAGES) == '{"b": "<ä>", "a": 1}'
    sorted_keys = "{{ {'b': 2, 'a': 1} | tojson(sort_keys=true, separators=(',', ':')) }}"
    assert render_chat(sorted_keys, MESSAGES) == '{"a":1,"b":2}'
    assert render_chat("{{ {'b': 'ä', 'a': 1} | tojson(true, none, none, true) }}", MESSAGES) == (
        '{"a": 1, "b": "\\u00e4"}'
    )
    template = "{{ bos_token }}{% if add_generation_prompt %}+{% endif %}"
    assert render_chat(template, MESSAGES, special_tokens={"bos_token": "<s>"}) == "<s>+"
    assert render_chat(template, MESSAGES, add_generation_prompt=False) == ""


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('only one system message') }}", "only one system message"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages[5].content }}", "messages"),
        ("{{ ().__class__.__bases__[0].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|append"),
        ("{{ 1 / 0 }}", "division"),
    ],
)
def test_templates_that_fail(template: str, reason: str) -> None:
    with pytest.raises(BundleError, match=f"chat template: .*({reason})") as caught:
        render_chat(template, MESSAGES)
    assert "\n" not in str(caught.value)
