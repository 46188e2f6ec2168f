"""Tokens in settings are found by their keys, and get new numbers."""

from __future__ import annotations

from edgetie.bundle.manifest import Signature
from edgetie.prune.token_settings import TokenSettings, renumber_signature, signature_tokens

SETTINGS = {
    "vocab_size": 100,
    "vocab_size_per_layer_input": 40,
    "eos_token_id": [7, 9],
    "pad_token_id": None,
    "image_token_index": 40,
    "audio_token_id": -1,
    "max_new_tokens": 9,
    "suppress_tokens": [7, 8, 50],
    "begin_suppress_tokens": [9],
    "bad_words_ids": [[7, 9], [7, 50]],
    "forced_decoder_ids": [[1, 7], [2, None]],
    "force_words_ids": [[7], [[9, 40]]],
    "pad_index": 9,
    "im_start_id": 40,
    "moe_layer_start_index": 9,
    "lang_to_id": {"<|en|>": 40},
    "text_decoder_lang_to_code_id": {"deu": 9},
    "sequence_bias": [[[9, 7], -1.5], [[8], 2.0]],
    "text_config": {"vocab_size": 100, "bos_token_id": 9, "num_hidden_layers": 7},
    "codec": {"vocab_size": 64, "bos_token_id": 9},
}
NUMBERS = {7: 0, 9: 1, 40: 2}


def test_required_tokens() -> None:
    assert TokenSettings(100).required_tokens(SETTINGS) == {7, 9, 40}


def test_renumbered() -> None:
    assert TokenSettings(100).renumber(SETTINGS, NUMBERS) == {
        "vocab_size": 3,
        "vocab_size_per_layer_input": 2,
        "eos_token_id": [0, 1],
        "pad_token_id": None,
        "image_token_index": 2,
        "audio_token_id": -1,
        "max_new_tokens": 9,
        "suppress_tokens": [0],
        "begin_suppress_tokens": [1],
        "bad_words_ids": [[0, 1]],
        "forced_decoder_ids": [[1, 0], [2, None]],
        "force_words_ids": [[0], [[1, 2]]],
        "pad_index": 1,
        "im_start_id": 2,
        "moe_layer_start_index": 9,
        "lang_to_id": {"<|en|>": 2},
        "text_decoder_lang_to_code_id": {"deu": 1},
        "sequence_bias": [[[1, 0], -1.5]],
        "text_config": {"vocab_size": 3, "bos_token_id": 1, "num_hidden_layers": 7},
        "codec": {"vocab_size": 64, "bos_token_id": 9},
    }


def test_signature() -> None:
    signature = Signature(
        [], [], vocab_size=100, eos_token_ids=[9], start_token_ids=[7], image_token_id=40,
        image_tokens=9, suppressed_token_ids=[8, 9], language_token_ids={"en": 7},
    )  # fmt: skip
    assert signature_tokens(signature) == {7, 9, 40}
    new = renumber_signature(signature, NUMBERS)
    assert (new.eos_token_ids, new.start_token_ids) == ([1], [0])
    assert (new.image_token_id, new.image_tokens, new.suppressed_token_ids) == (2, 9, [1])
    assert new.language_token_ids == {"en": 0}
