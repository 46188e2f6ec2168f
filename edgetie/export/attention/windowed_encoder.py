"""Trace encoders that attend within windows of equal length, as one attention with a mask."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from edgetie.sources.patching import set_attributes

_NAME = "flash_edgetie"  # transformers passes windows to implementations with "flash" in the name
_STARTS, _LONGEST = "cu_seqlens", "max_seqlen"


def find_window_length(module: torch.nn.Module, run: Callable[[], Any]) -> int | None:
    """Find the length of the windows in which an encoder attends; ``None`` if it has none.

    ``run`` runs it on an input that is longer than a window.

    Raises:
        TypeError: if windows have several lengths.
    """
    calls: list[list[int]] = []

    def record(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if isinstance(kwargs.get(_STARTS), torch.Tensor):
            calls.append(kwargs[_STARTS].tolist())

    hooks = [part.register_forward_pre_hook(record, with_kwargs=True) for part in module.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        return None
    starts = calls[0]
    if any(call != [*range(0, starts[-1], starts[1]), starts[-1]] for call in calls):
        raise TypeError("its encoder attends within windows of several lengths")
    return starts[1]


@contextlib.contextmanager
def attend_in_windows(module: torch.nn.Module, length: int | None) -> Iterator[dict[str, Any]]:
    """Compute attention in windows of ``length``, if any; yields arguments for the encoder."""
    if length is None:
        yield {}
        return
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(_NAME, _attention)
    configs = [part.config for part in module.modules() if hasattr(part, "config")]
    with set_attributes((config, "_attn_implementation", _NAME) for config in configs):
        yield {_STARTS: torch.tensor([0, length]), _LONGEST: length}


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute transformers' attention call: ``(batch, sequence, heads, head_size)``."""
    window = torch.arange(query.shape[2]) // max_length_q
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=(window[:, None] == window)[None, None], scale=scaling
    )
    return output.transpose(1, 2), None
