"""Ask an instruct model from Python and stream its answer.

python chat.py BUNDLE "What is the capital of France?"
"""

from __future__ import annotations

import sys

import edgetie


def main(path: str, question: str) -> None:
    session = edgetie.open_session(path, threads=2)
    conversation = edgetie.Conversation(session, edgetie.Tokenizer.from_bundle(session.bundle))
    sampling = edgetie.Sampling(temperature=0.7, top_p=0.9)
    for chunk in conversation.ask(question, max_new_tokens=64, sampling=sampling, seed=0):
        print(chunk.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
