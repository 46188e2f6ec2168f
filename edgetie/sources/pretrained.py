"""Models in transformers' format: a directory, or an id on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgetie.errors import SourceError
from edgetie.sources import Source


def load_pretrained(text: str, trust_remote_code: bool, allow_pickle: bool) -> Source:
    """Load a causal language model with transformers.

    Raises:
        SourceError: if it cannot be loaded, has code of its own or pickled weights and the
            permission for them was not given.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = Path(text)
    if directory.is_dir():
        _refuse_custom_code(directory, trust_remote_code)
        _refuse_pickle(directory, allow_pickle)
    try:
        config = AutoConfig.from_pretrained(text, trust_remote_code=trust_remote_code)
        module = AutoModelForCausalLM.from_pretrained(
            text,
            config=config,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if allow_pickle else True,
        ).eval()
    except Exception as error:
        raise SourceError(f"{text}: cannot be loaded ({first_line(error)})") from error
    return Source(
        kind="transformers",
        name=directory.name if directory.is_dir() else text,
        module=module,
        config=module.config,  # a copy of ``config``: its attention implementation is what counts
        save_extras=lambda target: save_extras(text, config, target, trust_remote_code),
    )


def _refuse_custom_code(directory: Path, allowed: bool) -> None:
    try:
        settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{directory / 'config.json'}: not valid JSON ({error})") from error
    if settings.get("auto_map") and not allowed:
        raise SourceError(
            f"{directory}: the model brings Python code of its own; "
            "read it, then allow it with --trust-remote-code"
        )


def _refuse_pickle(directory: Path, allowed: bool) -> None:
    if any(directory.glob("*.safetensors")):
        return
    pickles = sorted([*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")])
    if not pickles:
        raise SourceError(f"{directory}: no weights (*.safetensors) in this directory")
    if not allowed:
        raise SourceError(
            f"{pickles[0]}: pickled weights can run code when loaded; "
            "convert them to safetensors, or allow them with --allow-pickle"
        )


def save_extras(text: str, config: Any, target: Path, trust_remote_code: bool = False) -> None:
    """Write configuration, generation configuration and tokenizer files into ``target``.

    A model without a tokenizer is exported without one.
    """
    from transformers import AutoTokenizer, GenerationConfig

    config.save_pretrained(target)
    try:
        generation = GenerationConfig.from_pretrained(text)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    generation.save_pretrained(target)
    try:
        tokenizer = AutoTokenizer.from_pretrained(text, trust_remote_code=trust_remote_code)
    except Exception:
        return  # the reason does not matter: there is none that could be used
    save_tokenizer(tokenizer, target)


def save_tokenizer(tokenizer: Any, target: Path) -> None:
    """Save a tokenizer, its JSON without the indentation that doubles its size."""
    tokenizer.save_pretrained(target)
    path = target / "tokenizer.json"
    if path.is_file():
        text = json.dumps(
            json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":")
        )
        path.write_text(text, encoding="utf-8")


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
