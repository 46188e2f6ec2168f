"""Write a tokenizer as plain tables, for programs without a tokenizer library.

``tokenizer.bin`` holds a byte-level BPE tokenizer (GPT-2; Radford et al. 2019) and the classes of
characters that its pre-tokenizer needs, as little-endian uint32 unless noted otherwise::

    "EDT1"                                magic
    counts of tokens, merges, added, letters, numbers, spaces; digits: 1 if each is a token
    bytes      256                        token of each byte; 2**32 - 1: none, it is left out
    merges     merges x (left, right, rank, merged)             sorted by left, right
    added      added x (token, hidden)    longest text first; hidden: 1 if text leaves it out
    letters, numbers, spaces              ranges of code points (first, last)
    starts     tokens + 1                 where the bytes of each token begin in the text; its end
    text                                  bytes of all tokens, concatenated
"""

import sys
import unicodedata
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from edgetie.bundle.model_config import read_json
from edgetie.errors import BundleError
from edgetie.runtime.text.byte_level import byte_alphabet

_SPACES = [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F,
           0x205F, 0x3000]  # fmt: skip

_NONE = 2**32 - 1
_MAX_TOKENS = 1 << 22  # many times the largest vocabulary of any model


def write_tables(source: Path, target: Path) -> None:
    """Write ``tokenizer.bin`` for a ``tokenizer.json``.

    Raises:
        BundleError: if it is not byte-level BPE with the pre-tokenizer of GPT-2, or has steps or
            token ids that the tables cannot hold.
    """
    data = {"added_tokens": []} | read_json(source)
    digits = _require_supported(source, data)
    model = data["model"]
    added = {token["content"]: token for token in data["added_tokens"]}
    ids = model["vocab"] | {text: token["id"] for text, token in added.items()}
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    last = max(ids, key=ids.__getitem__)
    if ids[last] >= _MAX_TOKENS:
        raise BundleError(
            f"{source}: token {last[:40]!r} has the id {ids[last]}, which no model has; copy the "
            "model's file again"
        )
    texts = [b""] * (ids[last] + 1)
    for text, number in ids.items():
        texts[number] = text.encode() if text in added else bytes(byte_of[c] for c in text)
    merges = []
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        merges.append((ids[left], ids[right], rank, ids[left + right]))
    special = sorted(added.values(), key=lambda token: -len(token["content"].encode()))
    points = range(sys.maxunicode + 1)
    letters = [p for p in points if unicodedata.category(chr(p))[0] == "L"]
    numbers = [p for p in points if unicodedata.category(chr(p))[0] == "N"]
    classes = [_ranges(letters), _ranges(numbers), _ranges(_SPACES)]
    tables: list[Any] = [
        [ids.get(character, _NONE) for character in byte_alphabet().values()],
        sorted(merges),
        [(token["id"], int(token["special"])) for token in special],
        *classes,
        list(accumulate(map(len, texts), initial=0)),
    ]
    counts = [len(texts), len(merges), len(special), *map(len, classes), int(digits)]
    with target.open("wb") as file:
        file.write(b"EDT1" + np.array(counts, "<u4").tobytes())
        for table in tables:
            file.write(np.array(table, "<u4").tobytes())
        file.write(b"".join(texts))


def _require_supported(source: Path, data: dict[str, Any]) -> bool:
    """Refuse a tokenizer that the tables cannot hold; returns whether each digit is a token."""

    def refuse(what: str) -> NoReturn:
        raise BundleError(
            f"{source}: {what}; the tables of this starter hold byte-level BPE as in GPT-2 only; "
            "deploy for python, node or web instead"
        )

    model = data["model"]
    if model.get("type") != "BPE" or model.get("ignore_merges") or model.get("byte_fallback"):
        refuse(f"a {model.get('type')} model")
    settings = ("end_of_word_suffix", "continuing_subword_prefix", "dropout")
    for name in filter(model.get, settings):
        refuse(f"{name} ({model[name]})")
    if data.get("normalizer"):
        refuse(f"a normalizer ({data['normalizer'].get('type')})")
    steps = data.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if kinds not in (["ByteLevel"], ["Digits", "ByteLevel"]):
        refuse(f"a pre-tokenizer of {', '.join(map(str, kinds))}")
    if steps[-1].get("add_prefix_space") or not steps[-1].get("use_regex", True):
        refuse("a pre-tokenizer that prepends a space, or has another pattern")
    if len(steps) > 1 and not steps[0].get("individual_digits"):
        refuse("a pre-tokenizer of whole numbers")
    alphabet = {*byte_alphabet().values()}
    texts = model["vocab"].keys() - {token["content"] for token in data["added_tokens"]}
    if foreign := next((text for text in texts if not alphabet.issuperset(text)), None):
        refuse(f"a token that is not of bytes ({foreign})")
    for token in data["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            refuse(f"a token that takes spaces ({token['content']})")
    return len(steps) > 1


def _ranges(points: list[int]) -> list[tuple[int, int]]:
    ranges = []
    for _, run in groupby(enumerate(points), lambda pair: pair[1] - pair[0]):
        numbers = [point for _, point in run]
        ranges.append((numbers[0], numbers[-1]))
    return ranges
