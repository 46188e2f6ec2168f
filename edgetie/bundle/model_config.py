"""Read and correct settings in ``generation_config.json`` and ``config.json``."""

import json
from pathlib import Path
from typing import Any

from edgetie.bundle.names import CONFIG, CONFIGURATIONS
from edgetie.errors import BundleError


def read_token_ids(directory: Path, *, has_encoder: bool = False) -> dict[str, Any]:
    """Read the token ids of a manifest's signature, by the names of its fields.

    The generation configuration comes before the configuration. A decoder with an encoder starts
    with its start token, forced tokens and, if the model has it, the token for no timestamps.

    Raises:
        BundleError: if one of the files is not a JSON object.
    """
    settings: dict[str, Any] = {}
    for name in reversed(CONFIGURATIONS):
        values = read_json(directory / name)
        settings |= {key: value for key, value in values.items() if value is not None}
    stops = settings.get("eos_token_id")
    start = settings.get("decoder_start_token_id", settings.get("bos_token_id"))
    forced = [token for _, token in settings.get("forced_decoder_ids") or []]
    starts = [start, settings.get("forced_bos_token_id"), *forced]
    no_timestamps = settings.get("no_timestamps_token_id")
    starts += [no_timestamps] if no_timestamps not in starts else []
    languages = settings.get("lang_to_id") or {}
    return {
        "eos_token_ids": [stops] if isinstance(stops, int) else list(stops or ()),
        "start_token_ids": [t for t in starts if isinstance(t, int)] if has_encoder else [],
        "suppressed_token_ids": list(settings.get("suppress_tokens") or ()),
        "begin_suppressed_token_ids": list(settings.get("begin_suppress_tokens") or ()),
        "language_token_ids": {name.strip("<|>"): token for name, token in languages.items()},
    }


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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; empty if the file is missing.

    Raises:
        BundleError: if it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError) as error:
        raise BundleError(f"{path}: not valid JSON ({error})") from error
