"""Find and renumber the tokens in settings: configurations, processors and the signature."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from edgetie.bundle.manifest import Signature

_SPECIAL = re.compile(
    r"(^|_)token_(ids?|index)$|^force_words_ids$|^(bos|eos|pad|unk|mask)_index$"
    r"|^(im_|image_|slice_)?(start|end|patch|newline)_id$"
)
"""Keys of tokens that a model needs, such as ``eos_token_id``: one, or lists of any depth."""
_SUPPRESSED = re.compile(r"suppress_tokens$|^bad_words_ids$")
"""Keys of tokens that may be left out, in lists of any depth."""
_TOKENS_BY_NAME = re.compile(r"^(lang|task)_to_id$|^text_decoder_lang_to_code_id$")
"""Keys of an object from names to tokens."""
_PAIRS = "forced_decoder_ids"
"""Key of pairs of a position and a token."""
_BIASES = "sequence_bias"
"""Key of pairs of a list of tokens and a number."""
_VOCABULARY_SIZE = re.compile(r"(^|_)vocab_size(_per_layer_input)?$")
"""Keys of the number of tokens, and of those that a table of each layer has rows for."""


class TokenSettings:
    """Settings of a model, by the keys that transformers and onnxruntime-genai have for tokens.

    A nested object with a ``vocab_size`` of its own that is not the vocabulary's, such as that of
    an audio codec, has tokens of another vocabulary and is left alone.
    """

    def __init__(self, rows: int) -> None:
        """Store the number of rows of the vocabulary: other numbers are not its tokens."""
        self._rows = rows

    def required_tokens(self, settings: Any) -> set[int]:
        """List the tokens that a model with these settings needs."""
        return {
            token
            for key, value in self._entries(settings)
            if not _SUPPRESSED.search(key) and key != _BIASES
            for token in self._tokens_of(key, value)
        }

    def renumber(self, settings: Any, numbers: Mapping[int, int]) -> Any:
        """Return settings with new tokens and sizes of the vocabulary.

        Args:
            settings: of JSON.
            numbers: new tokens by old ones. Tokens that are not in it must not be required; lists
                of tokens to suppress lose them.
        """
        if isinstance(settings, list):
            return [self.renumber(each, numbers) for each in settings]
        if not isinstance(settings, dict):
            return settings
        return {key: self._renumbered(key, value, numbers) for key, value in settings.items()}

    def _entries(self, settings: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(settings, list):
            for each in settings:
                yield from self._entries(each)
        elif isinstance(settings, dict):
            for key, value in settings.items():
                yield key, value
                if not self._is_foreign(value):
                    yield from self._entries(value)

    def _is_foreign(self, settings: Any) -> bool:
        """Whether nested settings are of another vocabulary."""
        if not isinstance(settings, dict):
            return False
        sizes = [value for key, value in settings.items() if _VOCABULARY_SIZE.search(key)]
        return bool(sizes) and self._rows not in sizes

    def _is_token(self, value: Any) -> bool:
        return type(value) is int and 0 <= value < self._rows

    def _tokens_of(self, key: str, value: Any) -> Iterator[int]:
        if _SPECIAL.search(key):
            yield from filter(self._is_token, _leaves(value))
        elif _TOKENS_BY_NAME.search(key) and isinstance(value, dict):
            yield from filter(self._is_token, value.values())
        elif key == _PAIRS:
            yield from (token for _, token in value or () if self._is_token(token))

    def _renumbered(self, key: str, value: Any, numbers: Mapping[int, int]) -> Any:
        def new(token: Any) -> Any:
            return numbers[token] if self._is_token(token) else token

        if _VOCABULARY_SIZE.search(key):
            is_part = type(value) is int and key.endswith("_input") and value < self._rows
            is_own = is_part or value == self._rows
            return sum(token < value for token in numbers) if is_own else value
        if _SPECIAL.search(key):
            return _map(value, new)
        if _TOKENS_BY_NAME.search(key) and isinstance(value, dict):
            return {name: new(token) for name, token in value.items()}
        if key == _PAIRS and value:
            return [[position, new(token)] for position, token in value]
        if key == _BIASES and isinstance(value, list):
            kept = [pair for pair in value if _are_in(pair[0], numbers)]
            return [[_map(tokens, new), bias] for tokens, bias in kept]
        if _SUPPRESSED.search(key) and isinstance(value, list):
            return [_map(each, new) for each in value if _are_in(each, numbers)]
        return value if self._is_foreign(value) else self.renumber(value, numbers)


def renumber_signature(signature: Signature, numbers: Mapping[int, int]) -> Signature:
    """Return a signature with new tokens. Those to suppress that are not in ``numbers`` go.

    Shapes and the size of the vocabulary are those of the graph and stay as they are.
    """

    def new(tokens: list[int]) -> list[int]:
        return [numbers[token] for token in tokens if token in numbers]

    audio, image = signature.audio_token_id, signature.image_token_id
    return replace(
        signature,
        eos_token_ids=new(signature.eos_token_ids),
        start_token_ids=new(signature.start_token_ids),
        audio_token_id=None if audio is None else numbers[audio],
        image_token_id=None if image is None else numbers[image],
        suppressed_token_ids=new(signature.suppressed_token_ids),
        begin_suppressed_token_ids=new(signature.begin_suppressed_token_ids),
        language_token_ids={n: numbers[t] for n, t in signature.language_token_ids.items()},
    )


def signature_tokens(signature: Signature) -> set[int]:
    """List the tokens that a model with this signature needs."""
    media = (signature.audio_token_id, signature.image_token_id)
    return {
        *signature.eos_token_ids,
        *signature.start_token_ids,
        *signature.language_token_ids.values(),
        *(token for token in media if token is not None),
    }


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _map(value: Any, function: Any) -> Any:
    return [_map(each, function) for each in value] if isinstance(value, list) else function(value)


def _are_in(tokens: Any, numbers: Mapping[int, int]) -> bool:
    return all(token in numbers or token < 0 for token in _leaves(tokens))
