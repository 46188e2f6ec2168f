"""Pad inputs to a multiple of a window, as Longformer does by a branch on their length."""

from typing import Any

import torch


def attention_window(module: torch.nn.Module) -> int | None:
    """Read the window that a model pads to a multiple of; ``None`` if it has none."""
    window = getattr(getattr(module, "config", None), "attention_window", None)
    return max(window) if isinstance(window, (list, tuple)) else window


def example_length(module: torch.nn.Module, minimum: int) -> int:
    """Choose an example's length: more than two windows, as one window could take a branch."""
    return max(minimum, 5 * (attention_window(module) or 0) // 2)


def pad_to_window(module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> int | None:
    """Pad ``inputs``, ``(batch, sequence)`` each, to a multiple of the model's window, in place.

    Returns:
        The length before, to which outputs are cut; ``None`` if the model has no window.
    """
    window = attention_window(module)
    if window is None or "input_ids" not in inputs:
        return None
    config: Any = module.config
    length = inputs["input_ids"].shape[1]
    padding = (length + window - 1) // window * window - length
    for name, tensor in inputs.items():
        filler = config.pad_token_id if name == "input_ids" else 0
        inputs[name] = torch.nn.functional.pad(tensor, (0, padding), value=filler)
    return length
