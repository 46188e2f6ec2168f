"""Decode greedily on edgetie's provider and print the tokens as JSON.

``python greedy_tokens.py BUNDLE COUNT PROMPT``; PROMPT is a list of tokens in JSON.
"""

from __future__ import annotations

import json
import sys

from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session


def main() -> None:
    bundle, count, prompt = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    session = open_session(bundle, provider="edgetie", threads=2)
    steps = generate(session, [prompt], max_new_tokens=count, stop_token_ids=frozenset())
    print(json.dumps([int(step.tokens[0]) for step in steps]))


if __name__ == "__main__":
    main()
