"""Ask a vision-language model about an image from Python.

python ask_image.py BUNDLE photo.jpg "What is this?"
"""

from __future__ import annotations

import sys

import edgetie


def main(path: str, image: str, question: str) -> None:
    session = edgetie.open_session(path, threads=2)
    tokenizer = edgetie.Tokenizer.from_bundle(session.bundle)
    answer = edgetie.answer_about_images(session, tokenizer, [image], question, max_new_tokens=64)
    for chunk in answer:
        print(chunk.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
