"""Read and correct settings in ``generation_config.json`` and ``config.json``."""

import json
from pathlib import Path
from typing import Any

from edgetie.bundle.names import CONFIG, CONFIGURATIONS
from edgetie.errors import BundleError

_LIMIT = 1 << 31  # tokens stay below


def read_token_ids(directory: Path, *, has_encoder: bool = False) -> dict[str, Any]:
    """Read the token ids of a manifest's signature, by the names of its fields.

    The generation configuration comes before the configuration, and that before the one of a
    decoder in it. A decoder with an encoder starts with its start token, forced tokens and, if the
    model has it, the token for no timestamps. A separator ends its texts as well.

    Raises:
        BundleError: if one of the files is not a JSON object.
    """
    settings: dict[str, Any] = {}
    for name in reversed(CONFIGURATIONS):
        values = read_json(directory / name)
        nested = _decoder_settings(values) if has_encoder else {}
        settings |= {k: v for k, v in (nested | values).items() if v is not None}
    name = "decoder_start_token_id"
    starts = _tokens(settings, name if name in settings else "bos_token_id", directory)
    starts += _tokens(settings, "forced_bos_token_id", directory)
    starts += _forced_tokens(settings, directory)
    no_timestamps = _tokens(settings, "no_timestamps_token_id", directory)
    starts += [token for token in no_timestamps if token not in starts]
    ends = _tokens(settings, "eos_token_id", directory)
    separators = _tokens(settings, "sep_token_id", directory) if has_encoder else []
    ends += [token for token in separators if token not in ends]
    languages = settings.get("lang_to_id") or {}
    if not isinstance(languages, dict):
        raise _wrong_setting(directory, "lang_to_id", languages)
    return {
        "eos_token_ids": ends,
        "start_token_ids": starts if has_encoder else [],
        "suppressed_token_ids": _tokens(settings, "suppress_tokens", directory),
        "begin_suppressed_token_ids": _tokens(settings, "begin_suppress_tokens", directory),
        "language_token_ids": {
            name.strip("<|>"): token
            for name in languages
            for token in _tokens(languages, name, directory)
        },
    }


def _decoder_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the decoder in that of a model of several parts."""
    parts = (settings.get(name) for name in ("decoder", "text_config"))
    nested = next((part for part in parts if isinstance(part, dict)), {})
    return {key: value for key, value in nested.items() if value is not None}


def declare_ties(directory: Path, has_tied_head: bool) -> None:
    """Let ``config.json``, if there is one, say whether the head is tied to the embedding table.

    Other loaders tie what it says, whatever the weights are.

    Raises:
        BundleError: if it is not a JSON object.
    """
    path = directory / CONFIG
    settings = read_json(path)
    if not settings:
        return
    text = settings.get("text_config")
    for each in (settings, text) if isinstance(text, dict) else (settings,):
        each["tie_word_embeddings"] = has_tied_head
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _tokens(settings: dict[str, Any], name: str, directory: Path) -> list[int]:
    """Read a token or a list of tokens. Negative ones stand for none."""
    value = settings.get(name)
    tokens = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and token < _LIMIT for token in tokens):
        raise _wrong_setting(directory, name, value)
    return [token for token in tokens if token >= 0]


def _forced_tokens(settings: dict[str, Any], directory: Path) -> list[int]:
    """Read pairs of a position and a token, which may be missing."""
    pairs = settings.get("forced_decoder_ids") or []
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise _wrong_setting(directory, "forced_decoder_ids", pairs)
    return [token for _, one in pairs for token in _tokens({"token": one}, "token", directory)]


def _wrong_setting(directory: Path, name: str, value: object) -> BundleError:
    files = " or ".join(CONFIGURATIONS)
    return BundleError(
        f"{directory}: {name} in its {files} is {repr(value)[:60]}, which is not what models have "
        "there; repair it"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; empty if the file is missing.

    Raises:
        BundleError: if it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error})") from error
