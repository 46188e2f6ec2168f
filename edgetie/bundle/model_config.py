"""Settings in ``generation_config.json`` and ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgetie.bundle.names import CONFIGURATIONS
from edgetie.errors import BundleError


def suppressed_token_ids(directory: Path) -> tuple[list[int], list[int]]:
    """Tokens that are never generated, and those that do not come first."""
    never, first = (
        _setting(directory, name) or [] for name in ("suppress_tokens", "begin_suppress_tokens")
    )
    return list(never), [*never, *first]


def language_token_ids(directory: Path) -> dict[str, int]:
    """Tokens that name the language of a sound, by its code; empty if the model has none."""
    found = _setting(directory, "lang_to_id") or {}
    return {name.strip("<|>"): token for name, token in found.items()}


def eos_token_ids(directory: Path) -> list[int]:
    """The tokens that end a text, from the generation configuration or the configuration."""
    ends = _setting(directory, "eos_token_id")
    return [ends] if isinstance(ends, int) else list(ends or ())


def start_token_ids(directory: Path) -> list[int]:
    """The tokens that a decoder behind an encoder starts with: its start, forced ones, and that
    no timestamps are wanted, where a model has a token for that.
    """
    start = _setting(directory, "decoder_start_token_id")
    start = _setting(directory, "bos_token_id") if start is None else start
    forced = _setting(directory, "forced_decoder_ids") or []
    tokens = [start, _setting(directory, "forced_bos_token_id"), *(token for _, token in forced)]
    silent = _setting(directory, "no_timestamps_token_id")
    tokens += [silent] if silent not in tokens else []
    return [token for token in tokens if isinstance(token, int)]


def _setting(directory: Path, name: str) -> Any:
    """A setting of the generation configuration, or else of the configuration."""
    for file in CONFIGURATIONS:
        path = directory / file
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8")).get(name)
            except (ValueError, AttributeError) as error:
                raise BundleError(f"{path}: not valid JSON ({error})") from error
            if found is not None:
                return found
    return None
