"""Spell out what torch's attention broadcasts and ONNX Runtime's does not."""

from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
attention = torch.nn.functional.scaled_dot_product_attention


class AttentionMode(TorchFunctionMode):
    """Handle calls of ``scaled_dot_product_attention``, by default as torch does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not attention:
            return func(*args, **(kwargs or {}))
        return self.attend({**dict(zip(_ARGUMENTS, args, strict=False)), **(kwargs or {})})

    def attend(self, call: dict[str, Any]) -> torch.Tensor:
        """Compute attention from the named arguments of a call."""
        return attention(**call)


class BroadcastAttention(AttentionMode):
    """Expand a single key head to all query heads, a mask of one query to all queries, and queries
    of one batch item to all batch items.
    """

    def attend(self, call: dict[str, Any]) -> torch.Tensor:
        query, mask = call["query"], call.get("attn_mask")
        if query.ndim == 4 and call["key"].shape[1] == 1 != query.shape[1]:
            for name in ("key", "value"):
                call[name] = call[name].expand(-1, query.shape[1], -1, -1)
        if _is_one(query.shape[0]) and not _is_one(call["key"].shape[0]):
            call["query"] = query.expand(call["key"].shape[0], *query.shape[1:])
        if mask is not None and mask.ndim == 4 and _is_one(mask.shape[2]):
            call["attn_mask"] = mask.expand(-1, -1, query.shape[2], -1)
        return attention(**call)


def _is_one(size: Any) -> bool:
    return statically_known_true(size == 1)
