"""Read what a pruned vocabulary must encode: texts, lists of tokens and the chat template."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetie.errors import BundleError, PruneError
from edgetie.runtime.text.chat import template_texts
from edgetie.runtime.text.tokenizer import Tokenizer

_CHUNK = 1 << 20  # characters that are encoded at a time
_ROLES = (("user",), ("system", "user"), ("user", "assistant", "user"))


@dataclass(frozen=True)
class TextCost:
    """Tokens of a text before and after pruning.

    Attributes:
        words: number of words, as white space separates them.
        tokens_before, tokens_after: number of tokens.
    """

    words: int
    tokens_before: int
    tokens_after: int

    @property
    def tokens_per_word_before(self) -> float:
        return self.tokens_before / max(1, self.words)

    @property
    def tokens_per_word_after(self) -> float:
        return self.tokens_after / max(1, self.words)


def read_texts(sources: Sequence[str | Path]) -> list[str]:
    """Return texts, those of files read.

    Raises:
        PruneError: naming a file that cannot be read, or a text that is empty or names a file.
    """
    texts = []
    for source in sources:
        if isinstance(source, str) and os.path.isfile(source):  # noqa: PTH113 - any length
            raise _wrong_text("is the name of a file, but is read as a text; pass a Path", source)
        try:
            text = source.read_text("utf-8-sig") if isinstance(source, Path) else source
        except (OSError, UnicodeDecodeError) as error:
            raise _wrong_text(f"not readable as UTF-8 text ({error})", source) from error
        if not text.strip():
            raise _wrong_text("has no text; name another one", source)
        texts.append(text)
    return texts


def _wrong_text(message: str, source: str | Path) -> PruneError:
    return PruneError(message, parameter="keep_text", value=str(source)[:60])


def read_tokens(sources: Sequence[int | Path], rows: int) -> set[int]:
    """Return tokens, those of files read: numbers separated by white space.

    Args:
        sources: tokens and files of tokens.
        rows: number of tokens of the vocabulary.

    Raises:
        PruneError: naming a file that cannot be read, or a token that does not exist.
    """
    tokens = set[int]()
    for source in sources:
        try:
            words = source.read_text("utf-8-sig").split() if isinstance(source, Path) else [source]
            numbers = {int(word) for word in words}
        except (OSError, ValueError) as error:
            raise _wrong_tokens(f"not a file of token numbers ({error})", source) from error
        if not numbers:
            raise _wrong_tokens("has no tokens; name another file", source)
        outside = next((number for number in numbers if not 0 <= number < rows), None)
        if outside is not None:
            raise _wrong_tokens(f"the model has no token {outside}, only {rows:,}", source)
        tokens |= numbers
    return tokens


def _wrong_tokens(message: str, source: int | Path) -> PruneError:
    return PruneError(message, parameter="keep_tokens", value=str(source))


def chunks(texts: Sequence[str]) -> Iterator[str]:
    """Cut texts into parts that are encoded one by one, of at most 2²⁰ characters."""
    for text in texts:
        for start in range(0, len(text), _CHUNK):
            yield text[start : start + _CHUNK]


def chat_tokens(tokenizer: Tokenizer) -> set[int]:
    """List the tokens with which the chat template writes prompts."""
    if tokenizer.chat_template is None:
        return set()
    texts = template_texts(tokenizer.chat_template)
    for roles in _ROLES:
        try:
            texts.append(tokenizer.chat_prompt([{"role": r, "content": "a"} for r in roles]))
        except BundleError:  # not every template has every role
            continue
    return {token for text in texts for token in tokenizer.encode(text, add_special_tokens=False)}
