"""The alphabet of bytes is that of GPT-2."""

from __future__ import annotations

from tokenizers.pre_tokenizers import ByteLevel

from edgetie.runtime.text.byte_level import byte_alphabet


def test_the_alphabet_is_that_of_gpt2() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet) == list(range(256))
    assert sorted(alphabet.values()) == sorted(ByteLevel.alphabet())
    assert (alphabet[32], alphabet[ord("a")]) == ("Ġ", "a")
