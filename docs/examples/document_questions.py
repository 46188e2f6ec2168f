"""Ask questions about a document that the model reads once: later runs map what it has read.

python document_questions.py BUNDLE manual.txt manual.cache "How do I reset it?" "And then?"
"""

from __future__ import annotations

import sys
from pathlib import Path

import edgetie


def main(path: str, document: str, cache: str, *questions: str) -> None:
    session = edgetie.open_session(path, threads=2)
    prompt_cache = edgetie.PromptCache(cache)
    conversation = edgetie.Conversation(
        session,
        edgetie.Tokenizer.from_bundle(session.bundle),
        system=Path(document).read_text(encoding="utf-8"),
        prompt_cache=prompt_cache,
    )
    for question in questions:
        for chunk in conversation.ask(question, max_new_tokens=64):
            print(chunk.text, end="", flush=True)
        print()
    print(f"{prompt_cache.cached_tokens} tokens were read before", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
