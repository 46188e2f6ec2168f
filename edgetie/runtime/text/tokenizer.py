"""Convert text to tokens and back with the files of a bundle, without transformers."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.model_config import read_json
from edgetie.errors import BundleError, summarize

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_SPECIAL_TOKENS = "special_tokens_map.json"
_TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (TOKENIZER, _TOKENIZER_CONFIG, _SPECIAL_TOKENS, _TEMPLATE)
"""The files that :class:`Tokenizer` reads."""

_EXTRA_TOKENS = ("extra_special_tokens", "model_specific_special_tokens")
_HAS_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')


class Tokenizer:
    """A bundle's tokenizer.

    Attributes:
        backend: the ``tokenizers.Tokenizer``.
        special_tokens: text of the special tokens by name, such as ``eos_token``.
        chat_template: Jinja source, or ``None`` if the model is not a chat model.
    """

    def __init__(
        self, backend: Any, special_tokens: Mapping[str, str], chat_template: str | None
    ) -> None:
        """Switch off the backend's own padding and truncation."""
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self.chat_template = chat_template

    @staticmethod
    def from_bundle(bundle: Bundle) -> Tokenizer:
        """Read ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

        Raises:
            BundleError: if there is no tokenizer, it cannot be read, or it is not the manifest's.
        """
        import tokenizers

        path = bundle.directory / TOKENIZER
        if not path.is_file():
            raise BundleError(f"{path}: missing; copy the model's {TOKENIZER} into the bundle")
        for name in TOKENIZER_FILES:
            bundle.verify_file(name)
        if _HAS_PREFIX.search(path.read_bytes()) and (damage := merge_damage(read_json(path))):
            raise BundleError(f"{path}: not a readable tokenizer ({damage}); copy it again")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{path}: not a readable tokenizer ({error})") from error
        config = read_json(bundle.directory / _TOKENIZER_CONFIG)
        special = read_special_tokens(bundle.directory)
        return Tokenizer(backend, special, _chat_template(bundle.directory, config))

    @property
    def mask_token_id(self) -> int | None:
        """The token that masks one to be predicted; ``None`` if the model has none."""
        token: int | None = self.backend.token_to_id(self.special_tokens.get("mask_token", ""))
        return token

    @property
    def surrounding(self) -> tuple[list[int], list[int]]:
        """The special tokens before a text and after it."""
        text, whole = self.encode("a", add_special_tokens=False), self.encode("a")
        places = (i for i in range(len(whole)) if text and whole[i : i + len(text)] == text)
        start = next(places, len(whole))
        return whole[:start], whole[start + len(text) :]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokenize ``text``; a rendered chat already has its special tokens.

        Raises:
            BundleError: if the tokenizer has no token for a part of it, nor an unknown one.
        """
        try:
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except Exception as error:  # the library raises plain Exception
            raise BundleError(
                f"{TOKENIZER}: cannot read the text ({summarize(error)}); repair it, or choose "
                "another text"
            ) from error

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Convert ``ids`` to text."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """Render the prompt for ``messages`` (``{"role": ..., "content": ...}`` each).

        Encode it with ``add_special_tokens=False``. Like transformers, it gives the template each
        content as it is; see :meth:`chat_prompt` for templates that read lists of parts only.

        Raises:
            BundleError: if the model has no chat template, or it refuses the messages.
        """
        from edgetie.runtime.text.chat import render_chat

        if self.chat_template is None:
            raise BundleError("the bundle has no chat template; give plain text")
        return render_chat(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.special_tokens,
        )

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Render the prompt for messages whose content is text, in parts if the template needs it.

        Raises:
            BundleError: as :meth:`apply_chat_template`.
        """
        from edgetie.runtime.text.chat import with_parts

        if self.chat_template is not None:
            messages = with_parts(self.chat_template, messages, self.special_tokens)
        return self.apply_chat_template(messages)


def merge_damage(settings: Mapping[str, Any]) -> str | None:
    """Describe a merge of a ``tokenizer.json`` that would make the library abort the process.

    It cuts the model's prefix off the second part of each, whether it is there or not.
    """
    model = settings.get("model")
    model = model if isinstance(model, dict) else {}
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not isinstance(prefix, str) or not isinstance(merges, list):
        return None
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if isinstance(parts, list) and parts and not str(parts[-1]).startswith(prefix):
            return f"merge {parts} lacks the prefix {prefix[:20]!r}"
    return None


class Detokenizer:
    """Turn tokens into text one by one; the parts joined are the text of all tokens.

    Text is held back while it ends within a character. (Only if bytes make no character can the
    whole differ: some tokenizers then drop valid bytes next to them.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Leave out special tokens."""
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._length = 0

    def add(self, token: int) -> str:
        """Return the text that ``token`` completes; may be empty."""
        self._tokens.append(token)
        try:
            text: str = self._stream.step(self._tokenizer.backend, token) or ""
        except Exception:  # plain Exception: bytes that are not a character change earlier text
            logger.debug("token %d does not continue the text", token, exc_info=True)
            return ""
        self._length += len(text)
        return text

    def finish(self) -> str:
        """Return the rest, with U+FFFD for bytes that are not a character."""
        return self._tokenizer.decode(self._tokens)[self._length :]


def pad(
    sequences: Sequence[Sequence[int]], side: Literal["left", "right"] = "left"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pad to ids and attention mask, both ``(batch, longest)``."""
    longest = max(len(sequence) for sequence in sequences)
    ids = np.zeros((len(sequences), longest), np.int64)
    mask = np.zeros_like(ids)
    for index, sequence in enumerate(sequences):
        start = longest - len(sequence) if side == "left" else 0
        ids[index, start : start + len(sequence)] = sequence
        mask[index, start : start + len(sequence)] = 1
    return ids, mask


def read_special_tokens(directory: Path) -> dict[str, str]:
    """Read the text of each special token that has a name, those of the model alone included.

    Raises:
        BundleError: if a file is not a JSON object.
    """
    config = read_json(directory / _SPECIAL_TOKENS) | read_json(directory / _TOKENIZER_CONFIG)
    extra = [config.get(name) for name in _EXTRA_TOKENS]
    named = {name: token for name, token in config.items() if name.endswith("_token")}
    for tokens in extra:
        named |= tokens if isinstance(tokens, dict) else {}
    special = {}
    for name, token in named.items():
        text = token.get("content") if isinstance(token, dict) else token  # an AddedToken
        if text and isinstance(text, str):
            special[name] = text
    return special


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    file = directory / _TEMPLATE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except ValueError as error:
            raise BundleError(f"{file}: not UTF-8 ({error}); copy it again") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None
