"""Models that attend in windows read whole windows.

Longformer pads what it reads to a multiple of its window, which is a branch on the length. The
wrapper pads instead, by an expression that holds for every length, and cuts what comes out.
"""

from __future__ import annotations

from typing import Any

import torch


def window_of(module: torch.nn.Module) -> int | None:
    """The window that a model pads to a multiple of, if its configuration has one."""
    window = getattr(getattr(module, "config", None), "attention_window", None)
    return max(window) if isinstance(window, (list, tuple)) else window


def length_of_several(module: torch.nn.Module, fewest: int) -> int:
    """An example's length: more than two windows, as a branch on a single one would be traced."""
    return max(fewest, 5 * (window_of(module) or 0) // 2)


def pad_to_window(module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> int | None:
    """Pad ``inputs``, ``(batch, sequence)`` each, to a multiple of the model's window, in place.

    Returns:
        The length before, to which outputs are cut; ``None`` if the model has no window.
    """
    window = window_of(module)
    if window is None or "input_ids" not in inputs:
        return None
    config: Any = module.config
    before = inputs["input_ids"].shape[1]
    for name, tensor in inputs.items():
        length = tensor.shape[1]
        more = (length + window - 1) // window * window - length
        filler = config.pad_token_id if name == "input_ids" else 0
        inputs[name] = torch.nn.functional.pad(tensor, (0, more), value=filler)
    return before
