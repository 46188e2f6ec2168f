"""Generated tokens as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import runtime_models as tiny

from edgetie.bundle.manifest import Manifest
from edgetie.errors import EdgetieError
from edgetie.runtime.decoding.text_generation import Chunk, Completion, generate_text
from edgetie.runtime.session import Session, open_session
from edgetie.runtime.text.tokenizer import Tokenizer


def completions(chunks: Sequence[Chunk]) -> dict[int, Completion]:
    """Completions by prompt, each checked against the chunks that streamed it."""
    done = {chunk.index: chunk.completion for chunk in chunks if chunk.completion is not None}
    for index, completion in done.items():
        assert "".join(chunk.text for chunk in chunks if chunk.index == index) == completion.text
    return done


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return open_session(tiny.write_chat_bundle(tmp_path / "bundle"), threads=1)


@pytest.fixture
def tokenizer(session: Session) -> Tokenizer:
    return Tokenizer.from_bundle(session.bundle)


def test_a_prompt_outside_a_list_is_refused(session: Session, tokenizer: Tokenizer) -> None:
    with pytest.raises(EdgetieError, match="prompts='hello': is one text; make it a list"):
        next(generate_text(session, tokenizer, "hello", max_new_tokens=1))


def test_text_of_a_batch_is_that_of_each_alone(session: Session, tokenizer: Tokenizer) -> None:
    texts = ["hello there", "é", "once upon a time some"]
    together = completions(list(generate_text(session, tokenizer, texts, max_new_tokens=12)))
    for index, text in enumerate(texts):
        alone = completions(list(generate_text(session, tokenizer, [text], max_new_tokens=12)))[0]
        assert together[index].text == alone.text
        assert together[index].tokens == alone.tokens
        assert together[index].prompt_tokens == len(tokenizer.encode(text))


def test_stop_tokens_are_not_text(session: Session, tokenizer: Tokenizer) -> None:
    free = completions(list(generate_text(session, tokenizer, [[65]], max_new_tokens=6)))[0]
    assert free.stop_reason == "length"
    stop = free.tokens[3]
    manifest = session.bundle.manifest
    assert isinstance(manifest, Manifest)
    manifest.signature.eos_token_ids = [stop]
    ended = completions(list(generate_text(session, tokenizer, [[65]], max_new_tokens=6)))[0]
    assert ended.stop_reason == "stop_token"
    kept = free.tokens[: free.tokens.index(stop)]
    assert ended.tokens == [*kept, stop]
    assert ended.text == tokenizer.decode(kept)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_stop_strings_are_cut_even_across_tokens(
    session: Session, tokenizer: Tokenizer, length: int
) -> None:
    free = completions(list(generate_text(session, tokenizer, [[65]], max_new_tokens=20)))[0]
    for start in range(1, len(free.text) - length):
        stop = free.text[start : start + length]
        chunks = list(
            generate_text(
                session, tokenizer, [[65]], max_new_tokens=20, stop_strings=["\0never", stop]
            )
        )
        ended = completions(chunks)[0]
        assert ended.text == free.text[: free.text.index(stop)]
        assert ended.stop_reason == "stop_string"


def test_the_pending_beginning_of_a_stop_string_comes_out(
    session: Session, tokenizer: Tokenizer
) -> None:
    free = completions(list(generate_text(session, tokenizer, [[65]], max_new_tokens=8)))[0]
    stop = free.text[-1] + "\0"
    chunks = list(generate_text(session, tokenizer, [[65]], max_new_tokens=8, stop_strings=[stop]))
    assert completions(chunks)[0].text == free.text


@pytest.mark.slow
def test_a_real_model_answers(real_bundle: Path) -> None:
    session = open_session(real_bundle, threads=2)
    tokenizer = Tokenizer.from_bundle(session.bundle)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}]
    )
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    done = completions(list(generate_text(session, tokenizer, [ids], max_new_tokens=32)))[0]
    assert "Paris" in done.text
    assert done.stop_reason == "stop_token"
    assert np.isfinite(done.tokens_per_second or np.nan)
