"""Continue a prompt with the base model, then with each LoRA adapter of its bundle.

python switch_adapters.py BUNDLE "Once upon a time"
"""

from __future__ import annotations

import sys

import edgetie


def main(path: str, prompt: str) -> None:
    session = edgetie.open_session(path, threads=2)
    tokenizer = edgetie.Tokenizer.from_bundle(session.bundle)
    for adapter in (None, *session.bundle.manifest.adapters):
        session.use_adapter(adapter)  # the base's weights are not loaded again
        print(f"{adapter or 'base'}: ", end="")
        for chunk in edgetie.generate_text(session, tokenizer, [prompt], max_new_tokens=32):
            print(chunk.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
