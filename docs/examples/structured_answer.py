"""Have an instruct model answer in JSON that always parses.

python structured_answer.py BUNDLE "Ada Lovelace was born in London in 1815."
"""

from __future__ import annotations

import json
import sys

import edgetie

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "born": {"type": "integer", "minimum": 0, "maximum": 2100},
    },
    "required": ["name", "born"],
    "additionalProperties": False,
}


def main(path: str, text: str) -> None:
    session = edgetie.open_session(path)
    tokenizer = edgetie.Tokenizer.from_bundle(session.bundle)
    constraint = edgetie.Constraint.json_schema(PERSON, tokenizer)
    conversation = edgetie.Conversation(session, tokenizer)
    *_, last = conversation.ask(
        f"Who is this, and when born? {text}", max_new_tokens=100, constraint=constraint
    )
    if last.completion is None or last.completion.stop_reason == "length":
        raise SystemExit("the answer is incomplete; give it more tokens")
    print(json.loads(last.completion.text))


if __name__ == "__main__":
    main(*sys.argv[1:])
