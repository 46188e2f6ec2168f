"""Find the argument of ``forward`` that takes the KV cache."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CACHE_KEYWORDS = ("cache", "past_key_values")
"""Names of the KV cache in transformers, as argument and in the output: from 5.24 on, before."""


def cache_keyword(module: torch.nn.Module) -> str | None:
    """The name of the argument that takes a transformers KV cache, and of the output's cache."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in CACHE_KEYWORDS if name in parameters), None)
