"""onnxruntime-genai runs a bundle as it stands, with the same greedy tokens."""

from __future__ import annotations

from pathlib import Path

import onnxruntime_genai as og
import pytest

from edgetie.bundle import open_bundle
from edgetie.runtime import Tokenizer, generate, open_session

TOKENS = 64


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_same_greedy_tokens(real_bundle: Path, real_int8: Path, precision: str) -> None:
    path = real_bundle if precision == "fp32" else real_int8
    tokenizer = Tokenizer.from_bundle(open_bundle(path))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Tell me a long story about a fox and a river."}]
    )
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    steps = generate(open_session(path, threads=2), [ids], max_new_tokens=TOKENS)
    ours = [int(step.tokens[0]) for step in steps]

    model = og.Model(str(path))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + TOKENS, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    theirs = []
    while not generator.is_done() and len(theirs) < TOKENS:
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    assert len(ours) == TOKENS
    assert theirs == ours
