"""Read settings from ``generation_config.json`` and ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgetie.bundle.names import CONFIGURATIONS
from edgetie.errors import BundleError


def suppressed_token_ids(directory: Path) -> tuple[list[int], list[int]]:
    """Read the tokens that are never generated, and those that are not generated first."""
    never, first = (
        _setting(directory, name) or [] for name in ("suppress_tokens", "begin_suppress_tokens")
    )
    return list(never), [*never, *first]


def language_token_ids(directory: Path) -> dict[str, int]:
    """Read the tokens of spoken languages by language code; empty if the model has none."""
    tokens = _setting(directory, "lang_to_id") or {}
    return {name.strip("<|>"): token for name, token in tokens.items()}


def eos_token_ids(directory: Path) -> list[int]:
    """Read the tokens that end a text."""
    tokens = _setting(directory, "eos_token_id")
    return [tokens] if isinstance(tokens, int) else list(tokens or ())


def start_token_ids(directory: Path) -> list[int]:
    """Read the first tokens of an encoder-decoder model's decoder.

    They are its start token, forced tokens and, if the model has it, the token for a transcript
    without timestamps.
    """
    start = _setting(directory, "decoder_start_token_id")
    start = _setting(directory, "bos_token_id") if start is None else start
    forced = _setting(directory, "forced_decoder_ids") or []
    tokens = [start, _setting(directory, "forced_bos_token_id"), *(token for _, token in forced)]
    no_timestamps = _setting(directory, "no_timestamps_token_id")
    tokens += [no_timestamps] if no_timestamps not in tokens else []
    return [token for token in tokens if isinstance(token, int)]


def _setting(directory: Path, name: str) -> Any:
    """Read a setting from the first configuration file that has it."""
    for file in CONFIGURATIONS:
        path = directory / file
        if path.is_file():
            try:
                value = json.loads(path.read_text(encoding="utf-8")).get(name)
            except (ValueError, AttributeError) as error:
                raise BundleError(f"{path}: not valid JSON ({error})") from error
            if value is not None:
                return value
    return None
