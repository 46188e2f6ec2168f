"""Twenty questions whose answers are JSON, and a check of values against their schemas."""

from __future__ import annotations

import re
from typing import Any

Schema = dict[str, Any]


def text(limit: int = 30) -> Schema:
    return {"type": "string", "maxLength": limit}


def integer(minimum: int, maximum: int) -> Schema:
    return {"type": "integer", "minimum": minimum, "maximum": maximum}


def record(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array(items: Schema, minimum: int, maximum: int) -> Schema:
    return {"type": "array", "items": items, "minItems": minimum, "maxItems": maximum}


TREE: Schema = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": record(
            name=text(8), leaves={"type": "array", "items": text(8), "minItems": 1, "maxItems": 2}
        )
    },
}

QUESTIONS: list[tuple[str, Schema]] = [
    ("Name a city and its country.", record(city=text(), country=text())),
    ("What is the capital of France?", record(capital=text())),
    ("Describe Ada Lovelace.", record(name=text(), born=integer(1000, 2000), job=text())),
    ("Is the sea salty?", record(answer={"type": "boolean"})),
    ("Is this review good? 'I loved it.'", record(mood={"enum": ["good", "bad", "neutral"]})),
    ("List three colours.", record(colours=array(text(12), 3, 3))),
    ("List fruits.", array(text(12), 1, 5)),
    ("How many legs has a spider?", integer(0, 100)),
    ("What is the temperature of ice in degrees Celsius?", record(celsius={"type": "number"})),
    (
        "When does the shop open?",
        record(time={"type": "string", "pattern": "^[012][0-9]:[0-5][0-9]$"}),
    ),
    ("Give a date in 2024.", record(date={"type": "string", "format": "date"})),
    (
        "Book a table for two at Mario's.",
        record(restaurant=text(), guests=integer(1, 20), terrace={"type": "boolean"}),
    ),
    ("Who wrote Hamlet?", record(author={"anyOf": [text(), {"type": "null"}]})),
    (
        "Call the weather tool for Oslo.",
        record(tool={"const": "weather"}, arguments=record(city=text())),
    ),
    ("Give two points.", record(points=array(record(x=integer(-9, 9), y=integer(-9, 9)), 2, 2))),
    (
        "Choose a size and a colour for a shirt.",
        record(size={"enum": ["S", "M", "L"]}, colour={"enum": ["red", "blue"]}),
    ),
    ("Describe an oak as a tree of names.", TREE),
    ("Rate the film from 1 to 5 and say why.", record(stars=integer(1, 5), reason=text(60))),
    ("Say hello in French: 'été' is a word.", record(greeting=text(20), words=integer(1, 9))),
    ("Is it a number or a word? 12", {"anyOf": [{"type": "integer"}, {"enum": ["word"]}]}),
]

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int,
    "number": (int, float), "null": type(None),
}  # fmt: skip


def conforms(value: Any, schema: Schema, root: Schema | None = None) -> bool:
    """Whether a value is as the keywords above describe it; others are refused."""
    root = root or schema
    kind = schema.get("type")
    if kind is not None and not isinstance(value, _TYPES[kind]):
        return False
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    properties = schema.get("properties", {})
    checks = {
        "type": lambda _: True,
        "$defs": lambda _: True,
        "properties": lambda each: all(
            conforms(value[name], part, root) for name, part in each.items() if name in value
        ),
        "required": lambda names: set(names) <= set(value),
        "additionalProperties": lambda _: set(value) <= set(properties),
        "items": lambda part: all(conforms(item, part, root) for item in value),
        "minItems": lambda least: len(value) >= least,
        "maxItems": lambda most: len(value) <= most,
        "maxLength": lambda most: len(value) <= most,
        "minimum": lambda least: value >= least,
        "maximum": lambda most: value <= most,
        "pattern": lambda pattern: re.search(pattern, value) is not None,
        "format": lambda _: re.fullmatch(r"\d{4}-\d\d-\d\d", value) is not None,
        "enum": lambda values: value in values,
        "const": lambda other: value == other,
        "anyOf": lambda parts: any(conforms(value, part, root) for part in parts),
        "$ref": lambda path: conforms(value, root["$defs"][path.split("/")[-1]], root),
    }
    return all(checks[keyword](argument) for keyword, argument in schema.items())
