"""Pruned tokenizers encode kept texts as before, and all other texts still."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runtime_models
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgetie.errors import PruneError
from edgetie.prune.languages import characters_of
from edgetie.prune.tokenizer_vocabulary import TokenizerVocabulary, read_vocabulary

CORPUS = [
    "the user said hello there and the other user answered", "small models learn to write",
    "once upon a time some small model learned to write short sentences for other users",
    "an assistant answers every question of the users with short sentences",
] * 20  # fmt: skip
KEPT = "the user answered some short question"
OTHER = "zebras question every model"


def byte_level() -> Any:
    return runtime_models.byte_tokenizer()


def byte_level_of(corpus: list[str], size: int) -> Any:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def encloses() -> Any:
    """As BART's and Florence-2's: tokens around a text, in the vocabulary, and added places."""
    tokenizer = byte_level_of([*CORPUS, "<s><pad></s>"], 400)
    settings = json.loads(tokenizer.to_str())
    names = ["<s>", "<pad>", "</s>", *settings["model"]["vocab"]]
    settings["model"]["vocab"] = {name: index for index, name in enumerate(names)}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(settings))
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>"])
    tokenizer.add_tokens([f"<loc_{index}>" for index in range(5)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def byte_fallback(corpus: list[str] = CORPUS, size: int = 420) -> Any:
    """As SentencePiece's BPE: characters that are not known become bytes."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    data = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<s>", *data],
        show_progress=False,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(corpus, trainer)
    settings = json.loads(tokenizer.to_str())
    settings["added_tokens"] = [t for t in settings["added_tokens"] if t["content"] not in data]
    settings["pre_tokenizer"] = None
    return tokenizers.Tokenizer.from_str(json.dumps(settings))


def suffixed(corpus: list[str] = CORPUS, size: int = 200) -> Any:
    """As CLIP's: the last part of a word has an ending."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([*corpus, "zebras"], trainer)
    return tokenizer


def unigram(corpus: list[str] = CORPUS, size: int = 120) -> Any:
    """As T5's, with a token after each text that is not the first of the vocabulary."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([*corpus, "zebras"], trainer)
    tokenizer.add_special_tokens(["<extra_id_0>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>",
        special_tokens=[("</s>", tokenizer.token_to_id("</s>"))],
    )  # fmt: skip
    return tokenizer


def word_piece(corpus: list[str] = CORPUS, size: int = 160) -> Any:
    """As BERT's."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*corpus, "zebras"], trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


@pytest.mark.parametrize(
    "make", [byte_level, encloses, byte_fallback, suffixed, unigram, word_piece],
    ids=lambda make: make.__name__,
)  # fmt: skip
def test_kept_texts_are_encoded_as_before(make: Callable[[], Any], tmp_path: Path) -> None:
    old = make()
    old.save(str(tmp_path / "tokenizer.json"))
    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary is not None
    tokens = old.encode(KEPT).ids
    kept = vocabulary.order(vocabulary.close({*tokens, *vocabulary.required}))
    assert len(kept) < old.get_vocab_size()
    numbers = {token: index for index, token in enumerate(kept)}
    new = tokenizers.Tokenizer.from_str(json.dumps(vocabulary.renumbered(numbers)))
    assert new.get_vocab_size() == len(kept)
    for text, token in old.get_vocab().items():
        assert new.token_to_id(text) == numbers.get(token)
    assert [kept[token] for token in new.encode(KEPT).ids] == tokens
    assert new.decode(new.encode(OTHER).ids) == OTHER
    assert len(new.encode(OTHER).ids) > len(old.encode(OTHER).ids)


@pytest.mark.parametrize(
    "make", [byte_level_of, byte_fallback, suffixed, unigram, word_piece],
    ids=lambda make: make.__name__,
)  # fmt: skip
@pytest.mark.parametrize("language", ["ru", "en", "ja"])
def test_texts_of_a_language_are_encoded_as_before(
    make: Callable[[list[str], int], Any], language: str, tmp_path: Path
) -> None:
    corpora = {
        "en": CORPUS[:4],
        "ru": ["маленькие модели учатся писать короткие предложения", "ёлка и ёжик — дом 🙂"],
        "ja": ["小さなモデルは文章を書くことを学ぶ。", "猫と犬、カタカナー"],
    }
    old = make([text for texts in corpora.values() for text in texts] * 20, 700)
    old.save(str(tmp_path / "tokenizer.json"))
    vocabulary = TokenizerVocabulary(tmp_path / "tokenizer.json")
    tokens = vocabulary.tokens_in(characters_of([language]))
    kept = vocabulary.order(vocabulary.close(tokens | vocabulary.required))
    assert len(kept) < old.get_vocab_size()
    numbers = {token: index for index, token in enumerate(kept)}
    new = tokenizers.Tokenizer.from_str(json.dumps(vocabulary.renumbered(numbers)))
    shuffled = random.Random(0)
    for text in corpora[language]:
        for _ in range(50):
            assert [kept[token] for token in new.encode(text).ids] == old.encode(text).ids
            text = "".join(shuffled.sample(text, len(text)))


def test_old_merges_are_joined_by_a_space(tmp_path: Path) -> None:
    settings = json.loads(byte_level().to_str())
    settings["model"]["merges"] = [" ".join(pair) for pair in settings["model"]["merges"]]
    del settings["model"]["type"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    vocabulary = TokenizerVocabulary(tmp_path / "tokenizer.json")
    longest = max(vocabulary.ids.keys() - {*runtime_models.SPECIAL}, key=len)
    closed = vocabulary.close({vocabulary.ids[longest]})
    assert len(longest) > 3
    assert {*longest, longest} <= {text for text, i in vocabulary.ids.items() if i in closed}


def test_padding_has_a_new_number(tmp_path: Path) -> None:
    tokenizer = unigram()
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("<extra_id_0>"), pad_token="<extra_id_0>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = TokenizerVocabulary(tmp_path / "tokenizer.json")
    kept = vocabulary.order(vocabulary.required)
    settings = vocabulary.renumbered({token: index for index, token in enumerate(kept)})
    assert settings["padding"]["pad_id"] == len(kept) - 1


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(path))
    with pytest.raises(PruneError, match="of type WordLevel; only BPE, Unigram, WordPiece"):
        TokenizerVocabulary(path)
    tokenizers.Tokenizer(models.BPE(continuing_subword_prefix="##")).save(str(path))
    with pytest.raises(PruneError, match="BPE with a prefix for continued words"):
        TokenizerVocabulary(path)
