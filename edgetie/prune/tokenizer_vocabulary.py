"""Prune the vocabulary of a ``tokenizer.json``: kept texts are encoded to the same tokens."""

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from edgetie.bundle.model_config import read_json
from edgetie.errors import PruneError
from edgetie.prune.languages import Characters
from edgetie.runtime.text.byte_level import byte_alphabet
from edgetie.runtime.text.tokenizer import TOKENIZER

_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_MODELS = ("BPE", "Unigram", "WordPiece")


class TokenizerVocabulary:
    """The vocabulary of a tokenizer: BPE, Unigram or WordPiece.

    BPE merges pairs in the order of their ranks. What merges a text into its tokens are merges of
    kept tokens, so all others can go. Unigram chooses the likeliest pieces, and WordPiece the
    longest: fewer rivals do not change what they choose.

    Attributes:
        ids: tokens of the model and added ones by text.
        added: numbers of the added tokens.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            BundleError: if it is not JSON.
            PruneError: if its model is not one of the three, or cannot be pruned.
        """
        self._settings = read_json(path)
        model: dict[str, Any] = self._settings["model"]
        self._kind = model.get("type") or ("BPE" if "merges" in model else "")
        if self._kind not in _MODELS:
            kind = self._kind or "unknown"
            raise PruneError(
                f"{path}: a tokenizer of type {kind}; only {', '.join(_MODELS)} can be pruned"
            )
        if self._kind == "BPE" and model.get("continuing_subword_prefix"):
            raise PruneError(f"{path}: BPE with a prefix for continued words cannot be pruned")
        self._model = model
        vocabulary = model["vocab"]
        if self._kind == "Unigram":
            self._of_model = {text: index for index, (text, _) in enumerate(vocabulary)}
        else:
            self._of_model = dict(vocabulary)
        added = self._settings.get("added_tokens") or []
        self.ids = self._of_model | {token["content"]: token["id"] for token in added}
        self.added = frozenset(token["id"] for token in added)

    @functools.cached_property
    def required(self) -> set[int]:
        """Tokens without which some text, or a part of what models need, could not be encoded.

        They are added tokens, the unknown one, and those of bytes. A tokenizer that does not fall
        back to bytes needs its single characters instead. Unigram also keeps its least likely
        token, from which it computes the cost of unknown characters.
        """
        if _has_step(self._settings, "ByteLevel"):
            texts = {*byte_alphabet().values()}
        elif self._model.get("byte_fallback"):
            texts = {*_BYTES}
        else:
            texts = {text for text in self._of_model if len(self._characters(text)) == 1}
        required = {*self.added, *(self.ids[text] for text in texts if text in self.ids)}
        if self._kind == "Unigram":
            entries = self._model["vocab"]
            required.add(min(range(len(entries)), key=lambda index: entries[index][1]))
            required |= {self._model["unk_id"]} - {None}
        elif self._model.get("unk_token") in self.ids:
            required.add(self.ids[self._model["unk_token"]])
        if self._settings.get("padding"):
            required.add(self._settings["padding"]["pad_id"])
        _map_processor(self._settings.get("post_processor"), required.add)
        return required

    def tokens_in(self, characters: Characters) -> set[int]:
        """List the tokens that occur in texts of some characters: such texts need no others."""
        if not _has_step(self._settings, "ByteLevel"):
            suffix = self._model.get("end_of_word_suffix") or ""
            return {
                index
                for text, index in self._of_model.items()
                if characters.make_text(text.removesuffix(suffix))
            }
        byte_of = {character: byte for byte, character in byte_alphabet().items()}
        return {
            index
            for text, index in self._of_model.items()
            if byte_of.keys() >= {*text} and characters.make_bytes(bytes(byte_of[c] for c in text))
        }

    def close(self, tokens: Iterable[int]) -> set[int]:
        """Add the tokens that others are merged from."""
        if self._kind != "BPE":
            return set(tokens)
        texts = {index: text for text, index in self._of_model.items()}
        closed = set(tokens)
        for token in [*closed]:
            if token in texts and token not in self.added:
                closed |= {self._of_model[part] for part in self._merged_from(texts[token])}
        return closed

    def order(self, tokens: Collection[int]) -> list[int]:
        """Sort tokens as the tokenizer numbers them: those of its model, added ones, others."""
        of_model = {*self._of_model.values()}
        return sorted(
            tokens, key=lambda token: (token not in of_model, token not in self.added, token)
        )

    def renumbered(self, numbers: Mapping[int, int]) -> dict[str, Any]:
        """Return the contents of a ``tokenizer.json`` with some tokens.

        Args:
            numbers: new numbers of the kept tokens by old ones, in the order of :meth:`order`.
        """
        kept = {text: numbers[i] for text, i in self._of_model.items() if i in numbers}
        model = dict(self._model)
        if self._kind == "Unigram":
            entries = self._model["vocab"]
            model["vocab"] = [each for index, each in enumerate(entries) if index in numbers]
            if model["unk_id"] is not None:
                model["unk_id"] = numbers[model["unk_id"]]
        else:
            model["vocab"] = kept
        if self._kind == "BPE":
            model["merges"] = [
                pair for pair, parts in zip(model["merges"], self._merges, strict=True)
                if kept.keys() >= {*parts, "".join(parts)}
            ]  # fmt: skip
        padding = self._settings.get("padding")
        return self._settings | {
            "model": model,
            "added_tokens": [
                token | {"id": numbers[token["id"]]}
                for token in self._settings.get("added_tokens") or []
                if token["id"] in numbers
            ],
            "post_processor": _map_processor(self._settings.get("post_processor"), numbers.get),
            "padding": padding and padding | {"pad_id": numbers[padding["pad_id"]]},
        }

    @functools.cached_property
    def _merges(self) -> list[tuple[str, str]]:
        """The pairs in the order of their ranks; old files join them by a space."""
        pairs = self._model["merges"]
        return [tuple(pair.split(" ", 1) if isinstance(pair, str) else pair) for pair in pairs]

    @functools.cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self._merges)}

    def _characters(self, text: str) -> list[str]:
        """Split a token into the parts that the model starts from."""
        prefix = self._model.get("continuing_subword_prefix") or ""
        suffix = self._model.get("end_of_word_suffix") or ""
        if prefix and text.startswith(prefix) and len(text) > len(prefix):
            text = text.removeprefix(prefix)
        if suffix and text.endswith(suffix) and len(text) > len(suffix):
            start = text.removesuffix(suffix)
            return [*start[:-1], start[-1] + suffix]
        return list(text)

    def _merged_from(self, text: str) -> set[str]:
        """List what BPE merges on the way to a token; empty if it merges something else."""
        parts, used = self._characters(text), set[str]()
        while len(parts) > 1:
            used.update(part for part in parts if part in self._of_model)
            pairs = list(itertools.pairwise(parts))
            unknown = len(self._ranks)
            ranks = [self._ranks.get(pair, unknown) for pair in pairs]
            place = ranks.index(min(ranks))
            if ranks[place] == unknown:
                return set()
            parts[place : place + 2] = ["".join(pairs[place])]
        return used


def _has_step(settings: Mapping[str, Any], kind: str) -> bool:
    """Whether a tokenizer has a normalizer or pre-tokenizer of a type, alone or among others."""
    pending = [settings.get("normalizer"), settings.get("pre_tokenizer")]
    for step in pending:  # which grows
        if isinstance(step, dict):
            if step.get("type") == kind:
                return True
            pending += step.get("normalizers") or step.get("pretokenizers") or []
    return False


def _map_processor(settings: Any, function: Callable[[int], Any]) -> Any:
    """Replace the tokens that a processor, or each of several, adds to a text."""
    if not isinstance(settings, dict):
        return settings
    result = dict(settings)
    if "processors" in result:
        result["processors"] = [_map_processor(each, function) for each in result["processors"]]
    if isinstance(result.get("special_tokens"), dict):
        result["special_tokens"] = {
            name: token | {"ids": [function(index) for index in token["ids"]]}
            for name, token in result["special_tokens"].items()
        }
    for name in {"sep", "cls"} & result.keys():
        text, index = result[name]
        result[name] = [text, function(index)]
    return result


def read_vocabulary(directory: Path) -> TokenizerVocabulary | None:
    """Read the tokenizer of a bundle; ``None`` if it has none."""
    path = directory / TOKENIZER
    return TokenizerVocabulary(path) if path.is_file() else None
