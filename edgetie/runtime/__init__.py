"""Running bundles: providers, sessions, memory, decoding, tokenizers, generation.

Needs onnxruntime, numpy, tokenizers and jinja2; never torch or transformers. Names are imported
when they are first used, so ``import edgetie.runtime`` itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetie.runtime.audio import FeatureExtractor, read_wav
    from edgetie.runtime.decoder import Decoder
    from edgetie.runtime.generation import (
        Chunk,
        Completion,
        Step,
        generate,
        generate_text,
        stop_tokens,
    )
    from edgetie.runtime.hearing import hear
    from edgetie.runtime.memory import MemorySampler, MemoryUse, read_memory, release_file_pages
    from edgetie.runtime.providers import PROVIDERS, Provider, resolve
    from edgetie.runtime.sampling import Sampling, sample
    from edgetie.runtime.session import Session, open_session
    from edgetie.runtime.tokenizer import Detokenizer, Tokenizer
    from edgetie.runtime.transcription import transcribe

__all__ = [
    "PROVIDERS",
    "Chunk",
    "Completion",
    "Decoder",
    "Detokenizer",
    "FeatureExtractor",
    "MemorySampler",
    "MemoryUse",
    "Provider",
    "Sampling",
    "Session",
    "Step",
    "Tokenizer",
    "generate",
    "generate_text",
    "hear",
    "open_session",
    "read_memory",
    "read_wav",
    "release_file_pages",
    "resolve",
    "sample",
    "stop_tokens",
    "transcribe",
]

_MODULES = {
    "audio": ("FeatureExtractor", "read_wav"),
    "decoder": ("Decoder",),
    "generation": ("Chunk", "Completion", "Step", "generate", "generate_text", "stop_tokens"),
    "hearing": ("hear",),
    "memory": ("MemorySampler", "MemoryUse", "read_memory", "release_file_pages"),
    "providers": ("PROVIDERS", "Provider", "resolve"),
    "sampling": ("Sampling", "sample"),
    "session": ("Session", "open_session"),
    "tokenizer": ("Detokenizer", "Tokenizer"),
    "transcription": ("transcribe",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
