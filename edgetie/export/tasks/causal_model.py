"""How a causal language model is called: inputs, outputs, KV cache, padding.

One wrapper stands around every model. Its inputs are ``input_ids (batch, sequence)``,
``attention_mask (batch, total)`` and, with a cache, ``past_key_values.{i}.key/.value
(batch, kv_heads, past, head_size)``, or what else layer ``i`` keeps, such as ``.conv_state`` and
``.recurrent_state (batch, ...)``; ``total = past + sequence``. Everything else (positions, sequence
lengths, the last token of each row) follows from the mask.

**Padding.** GroupQueryAttention keeps the tokens of a row packed at the start of its cache. The
wrapper therefore moves the valid tokens of each row to the front before the model sees them, and
takes each row's last valid token afterwards: left-padded, right-padded and single prompts give the
same tokens from one graph, without an attention bias. A state does not change at padding.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from edgetie.bundle.names import LAST_TOKEN_NODE
from edgetie.errors import UnfusableError
from edgetie.export.attention.broadcast import BroadcastAttention, attention_arguments
from edgetie.export.attention.group_query_attention import (
    AttentionTrace,
    CacheLayer,
    attend,
    tracing,
)
from edgetie.export.attention.transformers_cache import (
    build_cache,
    recurrent_states,
    states_in_attributes,
)
from edgetie.export.patches.position_tables import ReadPositionTables
from edgetie.export.recurrence.token_unroll import TokenUnroll
from edgetie.export.tasks.base import logits_of
from edgetie.graph.tensors import CacheTensor
from edgetie.sources.cache_argument import cache_keyword


class _CachedAttention(TorchFunctionMode):
    """Gives the n-th ``scaled_dot_product_attention`` call the n-th layer's cache."""

    def __init__(self, layers: list[CacheLayer]) -> None:
        super().__init__()
        self._layers = iter(layers)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, key, value, scale = causal_arguments(args, kwargs)
            layer = next(self._layers)
            layer.append(key, value)
            return attend(query, layer, scale=scale).transpose(1, 2)
        return func(*args, **kwargs)


def causal_arguments(
    args: Any, kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float | None]:
    call = attention_arguments(args, kwargs)
    if call.get("attn_mask") is not None or not call.get("is_causal"):
        raise UnfusableError("scaled_dot_product_attention that is not is_causal=True")
    return call["query"], call["key"], call["value"], call.get("scale")


class CausalLM(torch.nn.Module):
    """The wrapper that is traced; see the module's docstring for inputs and outputs.

    Args:
        model: the language model.
        caller: as in :class:`edgetie.export.tasks.causal.CausalTask`.
        position_ids: whether a module of one's own takes them.
        cache, tables, decoder_part, attributes: as there.
        fused: emit GroupQueryAttention (``True``) or let the model compute its own attention.
        last_only: logits of each row's last token, ``(batch, 1, vocabulary)``, or of all.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        caller: str,
        position_ids: bool,
        cache: tuple[CacheTensor, ...],
        tables: Mapping[str, int],
        decoder_part: bool,
        attributes: Mapping[str, str],
        fused: bool,
        last_only: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.caller = caller
        self.position_ids = position_ids
        self.names = [tensor.name for tensor in cache]
        self.recurrent = any(not tensor.grows for tensor in cache)
        self.tables = tables
        self.decoder_part = decoder_part
        self.attributes = attributes
        self.parameters_taken = inspect.signature(model.forward).parameters
        self.keyword = cache_keyword(model) or ""
        self.fused = fused
        self.last_only = last_only

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        length = input_ids.shape[1]
        window = attention_mask[:, -length:]
        steps = torch.arange(length)
        if self.recurrent and not self.fused:
            raise UnfusableError("states beside attention that is no GroupQueryAttention")
        if self.caller == "transformers" and not self.fused:
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -length:]
            last = (window * (steps + 1)).argmax(1)
            logits, present = self._unfused(input_ids, attention_mask, positions, past)
        else:
            first = window.argmax(1)[:, None]
            ids = input_ids.gather(1, torch.minimum(steps + first, steps[-1]))
            total, here = attention_mask.sum(1), window.sum(1)
            positions = (total - here)[:, None] + steps
            last = here - 1
            trace = AttentionTrace(
                seqlens_k=(total - 1).to(torch.int32),
                total_length=torch.full((1,), attention_mask.shape[1], dtype=torch.int32),
                layers=[],
            )
            with tracing(trace):
                if self.recurrent:
                    valid = steps < here[:, None]
                    logits, present = self._tokenwise(ids, valid, positions, past, trace)
                else:
                    known = (torch.arange(attention_mask.shape[1])[None] < total[:, None]).long()
                    logits, present = self._packed(ids, known, positions, past, trace)
            if not self.last_only:
                back = torch.maximum(steps - first, steps[0])[..., None]
                logits = _symbolic("GatherND", logits, back, (*ids.shape, logits.shape[-1]))
        if self.last_only:
            shape = (logits.shape[0], 1, logits.shape[-1])
            logits = _symbolic("GatherND", logits, last[:, None, None], shape, LAST_TOKEN_NODE)
        return (logits, *present)

    def _packed(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        past: tuple[torch.Tensor, ...],
        trace: AttentionTrace,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run on rows whose valid tokens stand in front."""
        layers = trace.layers = cache_layers(past)
        if self.caller == "positions":
            with _CachedAttention(layers):
                output = self.model(ids, position_ids=positions)
        elif self.caller == "plain":
            given: dict[str, Any] = {"position_ids": positions} if self.position_ids else {}
            if "use_cache" in self.parameters_taken:
                given["use_cache"] = False
            output = self.model(ids, **given)
        else:
            output = self._call(ids, mask, positions, build_cache(dict(enumerate(layers))))
        if any(layer.present is None for layer in layers):
            raise UnfusableError("a layer with a KV cache but no attention call")
        return logits_of(output), [tensor for layer in layers for tensor in layer.result]

    def _tokenwise(
        self,
        ids: torch.Tensor,
        valid: torch.Tensor,
        positions: torch.Tensor,
        past: tuple[torch.Tensor, ...],
        trace: AttentionTrace,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run on every token alone, see :mod:`token_unroll`; attention as in ``_packed``."""
        rows = TokenUnroll(ids)
        given = dict(zip(self.names, past, strict=True))
        layers: dict[int, CacheLayer] = {}
        states: dict[str, torch.Tensor] = {}
        for name, tensor in given.items():
            number, part = name.split(".")
            if part == "key":
                layers[int(number)] = CacheLayer(tensor, given[f"{number}.value"], rows)
            elif part != "value":
                states[name] = rows.past_state(tensor)
        trace.layers = list(layers.values())
        held = {self.attributes[name]: states[name] for name in self.attributes}
        cached = {name: state for name, state in states.items() if name not in self.attributes}
        # a model may write into the tensors it is given
        copy = {name: state.clone() for name, state in cached.items()}
        with states_in_attributes(self.model, held) as left:
            cache = build_cache(layers, copy)
            output = self._call(rows.split(ids), None, rows.split(positions), cache)
        now = recurrent_states(cache) | {name: left[path] for name, path in self.attributes.items()}
        present = {name: rows.present_state(now[name], states[name], valid) for name in states}
        for index, layer in layers.items():
            if layer.present is None:
                raise UnfusableError("a layer with a KV cache but no attention call")
            present[f"{index}.key"], present[f"{index}.value"] = layer.present
        logits = logits_of(output)
        return logits.reshape(*ids.shape, logits.shape[-1]), [present[name] for name in self.names]

    def _unfused(
        self,
        ids: torch.Tensor,
        attention_mask: torch.Tensor,
        positions: torch.Tensor,
        past: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The model's own attention and masks; caches are concatenated."""
        layers = cache_layers(past)
        with BroadcastAttention():
            cache = build_cache(dict(enumerate(layers)))
            output = self._call(ids, attention_mask, positions, cache)
        return logits_of(output), [tensor for layer in layers for tensor in layer.result]

    def _call(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: Any,
    ) -> Any:
        """transformers' call with a cache; who counts positions themselves is told them."""
        if self.decoder_part:
            from transformers.cache_utils import DynamicCache, EncoderDecoderCache

            cache = EncoderDecoderCache(cache, DynamicCache())
        with self._reading_tables(positions):
            return self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{self.keyword: cache},
            )

    @contextlib.contextmanager
    def _reading_tables(self, positions: torch.Tensor) -> Iterator[None]:
        if not self.tables:
            yield
            return
        with ReadPositionTables(self.model, self.tables, positions):
            yield


def cache_layers(past: tuple[torch.Tensor, ...]) -> list[CacheLayer]:
    """Layers over cache tensors, key and value in turn."""
    return [CacheLayer(key, value) for key, value in zip(past[::2], past[1::2], strict=True)]


def _symbolic(
    op: str, data: torch.Tensor, indices: torch.Tensor, shape: Any, name: str | None = None
) -> torch.Tensor:
    """One ONNX node with ``batch_dims=1``; ``name`` travels in its metadata."""
    return torch.onnx.ops.symbolic(
        op,
        [data, indices],
        {"batch_dims": 1},
        dtype=data.dtype,
        shape=shape,
        version=13,
        metadata_props={"edgetie.name": name} if name else None,
    )
