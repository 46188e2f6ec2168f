"""How a module wants to be called: what its ``forward`` names its KV cache."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CACHE_KEYWORDS = ("cache", "past_key_values")
"""transformers' name for the KV cache, as an argument and on the output: from 5.24 on, before."""


def cache_keyword(module: torch.nn.Module) -> str | None:
    """The argument that takes a transformers KV cache, also the output's attribute; or ``None``."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in CACHE_KEYWORDS if name in parameters), None)
