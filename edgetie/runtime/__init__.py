"""Running bundles: providers, sessions, memory, decoding, tokenizers, generation.

Needs onnxruntime, numpy, tokenizers and jinja2; never torch or transformers. Names are imported
when they are first used, so ``import edgetie.runtime`` itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetie.runtime.decoder import Decoder
    from edgetie.runtime.memory import MemorySampler, MemoryUse, read_memory, release_file_pages
    from edgetie.runtime.providers import PROVIDERS, Provider, resolve
    from edgetie.runtime.session import Session, open_session

_HOME = {
    "Decoder": "decoder",
    "MemorySampler": "memory",
    "MemoryUse": "memory",
    "PROVIDERS": "providers",
    "Provider": "providers",
    "Session": "session",
    "open_session": "session",
    "read_memory": "memory",
    "release_file_pages": "memory",
    "resolve": "providers",
}

__all__ = [
    "PROVIDERS",
    "Decoder",
    "MemorySampler",
    "MemoryUse",
    "Provider",
    "Session",
    "open_session",
    "read_memory",
    "release_file_pages",
    "resolve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
