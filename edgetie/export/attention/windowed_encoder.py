"""Encoders that attend within windows of equal length, which transformers counts in Python.

Such an encoder is told where windows begin (``cu_seqlens``) and cuts its sequence there. While it
is traced, attention is computed at once instead, over a mask that keeps windows apart. transformers
hands the boundaries over to attention whose name says ``flash``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

_NAME = "flash_edgetie"
_BOUNDARIES, _LONGEST = "cu_seqlens", "max_seqlen"


def find_attention_window(module: torch.nn.Module, run: Callable[[], Any]) -> int | None:
    """Length of the windows in which an encoder attends; ``None`` if it has none.

    Args:
        module: it.
        run: runs it on something longer than a window.

    Raises:
        TypeError: if they are of several lengths.
    """
    seen: list[list[int]] = []

    def note(_: Any, args: Any, given: dict[str, Any]) -> None:
        if isinstance(given.get(_BOUNDARIES), torch.Tensor):
            seen.append(given[_BOUNDARIES].tolist())

    hooks = [part.register_forward_pre_hook(note, with_kwargs=True) for part in module.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        return None
    first, *_ = seen
    if any(found != [*range(0, first[-1], first[1]), first[-1]] for found in seen):
        raise TypeError("its encoder attends within windows of several lengths")
    return first[1]


@contextlib.contextmanager
def attend_in_windows(module: torch.nn.Module, length: int | None) -> Iterator[dict[str, Any]]:
    """Compute attention in windows of ``length``; does nothing without.

    Yields:
        What the encoder is called with besides.
    """
    if length is None:
        yield {}
        return
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(_NAME, _attention)
    configs: list[Any] = [part.config for part in module.modules() if hasattr(part, "config")]
    before = [(config, config._attn_implementation) for config in configs]
    try:
        for config, _ in before:
            config._attn_implementation = _NAME
        yield {_BOUNDARIES: torch.tensor([0, length]), _LONGEST: length}
    finally:
        for config, name in before:
            config._attn_implementation = name


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
    """transformers' attention call; returns ``(batch, sequence, heads, head_size)``."""
    window = torch.arange(query.shape[2]) // max_length_q
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=(window[:, None] == window)[None, None], scale=scaling
    )
    return output.transpose(1, 2), None
