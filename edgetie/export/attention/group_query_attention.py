"""Emit ``com.microsoft::GroupQueryAttention`` nodes while a model is traced."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from edgetie.errors import UnfusableError
from edgetie.export.recurrence.token_unroll import TokenUnroll

_HEAD_SIZE_MULTIPLE = 8  # GroupQueryAttention rejects other head sizes


@dataclass
class CacheLayer:
    """The KV cache of one attention layer: ``(batch, kv_heads, length, head_size)`` each.

    Attributes:
        past_key, past_value: the cache before the call.
        unroll: set if every token is traced as a batch item.
        appended: new keys and values.
        full: past and new ones, concatenated.
        present: the cache that the attention operator returned.
    """

    past_key: torch.Tensor
    past_value: torch.Tensor
    unroll: TokenUnroll | None = None
    appended: tuple[torch.Tensor, torch.Tensor] | None = None
    full: tuple[torch.Tensor, torch.Tensor] | None = None
    present: tuple[torch.Tensor, torch.Tensor] | None = None

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Concatenate past and new keys and values: dead code if attention reads ``appended``."""
        if self.unroll is not None:
            key, value = self.unroll.merge(key), self.unroll.merge(value)
        self.appended = (key, value)
        keys = torch.cat([self.past_key, key], dim=-2)
        self.full = keys, torch.cat([self.past_value, value], dim=-2)
        return self.full

    @property
    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The cache after this call: from the fused operator, or the concatenation."""
        present = self.present or self.full
        if present is None:
            raise UnfusableError("a layer of the model never wrote its KV cache")
        return present


@dataclass
class AttentionTrace:
    """What the attention operators of a trace share."""

    seqlens_k: torch.Tensor  # (batch,), int32: valid tokens of each batch item, less one
    total_length: torch.Tensor  # (1,), int32: past and new tokens
    layers: list[CacheLayer]
    masks: list[tuple[torch.Tensor, int | None]] = field(default_factory=list)  # and their windows

    def layer_of(self, key: torch.Tensor) -> CacheLayer:
        """Find the cache layer whose update returned ``key``."""
        for layer in self.layers:
            if layer.full is not None and layer.full[0] is key:
                return layer
        raise UnfusableError("attention over keys that come from no KV cache layer")


_traces: list[AttentionTrace] = []


@contextlib.contextmanager
def tracing(trace: AttentionTrace) -> Iterator[None]:
    """Make ``trace`` the current one."""
    _traces.append(trace)
    try:
        yield
    finally:
        _traces.pop()


def current_trace() -> AttentionTrace | None:
    """Return the trace in progress; ``None`` outside of :func:`tracing`."""
    return _traces[-1] if _traces else None


def attend(
    query: torch.Tensor,
    layer: CacheLayer,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sink: torch.Tensor | None = None,
) -> torch.Tensor:
    """Emit one GroupQueryAttention for ``layer``.

    Args:
        query: ``(batch, heads, sequence, head_size)``, already rotated if the model rotates.
        layer: the cache layer, its new keys and values appended.
        scale: factor on the scores; ``None`` is ``1 / sqrt(head_size)``.
        window: how many positions a query attends to, itself included; ``None`` is all.
        softcap: Gemma 2's ``softcap * tanh(scores / softcap)``.
        sink: ``(heads,)``: for each head the score of one more key, whose value is zero.

    Returns:
        ``(batch, sequence, heads, head_size)``.

    Raises:
        UnfusableError: if the operator does not support the shapes.
    """
    trace = current_trace()
    assert trace is not None
    assert layer.appended is not None
    key, value = layer.appended
    if layer.unroll is not None:
        query = layer.unroll.merge(query)
    require_fusable(query, key, value)
    batch, heads, length, size = query.shape
    kv_heads = key.shape[1]

    def flatten_heads(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).reshape(batch, length, x.shape[1] * size)

    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads}
    options = (("scale", float, scale), ("local_window_size", int, window),
               ("softcap", float, softcap))  # fmt: skip
    attributes |= {name: kind(value) for name, kind, value in options if value is not None}
    cache_shape = (batch, kv_heads, layer.past_key.shape[-2] + length, size)
    output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [
            *map(flatten_heads, (query, key, value)),
            layer.past_key, layer.past_value,
            trace.seqlens_k, trace.total_length,
            *([None] * 4 + [sink] if sink is not None else []),
        ],
        attributes,
        dtypes=[query.dtype, key.dtype, value.dtype],
        shapes=[(batch, length, heads * size), cache_shape, cache_shape],
        version=1,
    )  # fmt: skip
    layer.present = (present_key, present_value)
    output = output.reshape(batch, length, heads, size)
    return output if layer.unroll is None else layer.unroll.split(output)


def require_fusable(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Raise :class:`UnfusableError` if GroupQueryAttention does not support these shapes."""
    if query.ndim != 4:
        raise UnfusableError(f"attention over tensors of {query.ndim} axes")
    sizes = [tensor.shape[-1] for tensor in (query, key, value)]
    if len(set(sizes)) > 1 or sizes[0] % _HEAD_SIZE_MULTIPLE:
        raise UnfusableError(f"head sizes {sizes[0]}, {sizes[1]}, {sizes[2]}")
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads % kv_heads:
        raise UnfusableError(f"{heads} query heads over {kv_heads} key heads")
