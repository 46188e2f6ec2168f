"""Find the characters that languages are written with, and what of their UTF-8 tokens may hold."""

import codecs
import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from edgetie.errors import PruneError

_SEVERAL = {
    "Hanb": ("Hani", "Bopo"),
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Jpan": ("Hani", "Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
}
"""Names of ISO 15924 for several scripts of Unicode, or for a part of one."""
_SHARED = ("Zyyy", "Zinh")
"""Characters of no script: digits, punctuation, white space, symbols; and marks of any script."""


class Characters:
    """The characters of some scripts, with digits, punctuation, symbols and marks.

    Attributes:
        all: the characters.
    """

    def __init__(self, scripts: Iterable[str]) -> None:
        """List the characters.

        Args:
            scripts: codes of ISO 15924 that Unicode has characters of.
        """
        from tokenizers import Regex, normalizers

        points = [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]  # without surrogates
        names = "".join(rf"\p{{{script}}}" for script in (*scripts, *_SHARED))
        others = normalizers.Replace(Regex(f"[^{names}]+"), "")
        self.all = frozenset(others.normalize_str("".join(map(chr, points))))

    def make_text(self, text: str) -> bool:
        """Whether a text consists of these characters."""
        return self.all.issuperset(text)

    def make_bytes(self, data: bytes) -> bool:
        """Whether bytes occur in a text of these characters in UTF-8, cut anywhere."""
        start = next((i for i, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            text = decoder.decode(data[start:])
        except UnicodeDecodeError:
            return False
        end, _ = decoder.getstate()
        return self.make_text(text) and all(
            not part or part in self._parts for part in (data[:start], end)
        )

    @functools.cached_property
    def _parts(self) -> frozenset[bytes]:
        """Parts of single characters."""
        encoded = [character.encode() for character in self.all if ord(character) > 0x7F]
        return frozenset(
            data[start:end]
            for data in encoded
            for start in range(len(data))
            for end in range(start + 1, len(data) + 1)
        )


def characters_of(languages: Sequence[str]) -> Characters:
    """Find the characters of the scripts that languages are mostly written in, by Unicode's CLDR.

    Args:
        languages: codes of ISO 639 such as ``de``, with a script or a region if another one than
            the usual is meant, such as ``zh-TW`` or ``sr-Latn``.

    Raises:
        PruneError: if Babel, the library with CLDR, is not installed, or naming a language that is
            not known, with similar ones.
    """
    return Characters(script for language in languages for script in _scripts(language))


def _scripts(language: str) -> tuple[str, ...]:
    try:
        from babel.core import get_global, parse_locale
    except ImportError as error:
        raise PruneError(
            "languages need Babel; install it with: pip install babel, or in the checkout of "
            'edgetie: pip install ".[languages]"'
        ) from error
    likely = {tag: full for tag, full in get_global("likely_subtags").items() if tag != "und"}
    try:
        code, region, script, *_ = parse_locale(language.strip().replace("_", "-"), sep="-")
    except ValueError:
        raise _unknown(language, likely) from None
    if code not in likely:
        raise _unknown(language, likely)
    script = script or likely.get(f"{code}_{region}", likely[code]).split("_")[1]
    scripts = _SEVERAL.get(script, (script,))
    for each in scripts:
        _require_script(language, each)
    return scripts


def _require_script(language: str, script: str) -> None:
    from tokenizers import Regex

    try:
        Regex(rf"\p{{{script}}}")
    except Exception as error:  # the library has no type of its own for a name that is not known
        raise _wrong_language(
            f"Unicode has no characters of the script {script}", language
        ) from error


def _unknown(language: str, likely: Mapping[str, str]) -> PruneError:
    """Describe a language that is not known, with similar codes and names, and that of a region."""
    from babel import Locale

    names = {code: name for code, name in Locale("en").languages.items() if code in likely}
    by_text = {text.lower(): code for code, name in names.items() for text in (code, name)}
    similar = [by_text[text] for text in get_close_matches(language.lower(), by_text, cutoff=0.7)]
    spoken = likely.get(f"und_{language.upper()}", "").split("_")[0]
    hints = [
        f"{code} ({names[code]})" for code in dict.fromkeys([spoken, *similar]) if code in names
    ]
    hint = f"use {' or '.join(hints)}" if hints else "use one such as de, ja or zh-TW"
    return _wrong_language(f"not the code of a language (ISO 639); {hint}", language)


def _wrong_language(message: str, language: str) -> PruneError:
    return PruneError(message, parameter="keep_languages", value=language[:60])
