"""Causal language models: decoders with a KV cache."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from edgetie.bundle import MODEL
from edgetie.export import attention
from edgetie.export.attention import Unfusable
from edgetie.export.tasks.base import (
    Agreement,
    Array,
    Expected,
    Graph,
    LayerShape,
    Task,
    cache_names,
    largest_error,
    logits_of,
    longest,
)
from edgetie.export.tasks.causal_model import CausalLM, causal_arguments
from edgetie.export.tasks.running import open_graph
from edgetie.sources.calling import cache_keyword

_PROBE_TOKENS = 3
_BATCH, _SEQUENCE, _PAST = 2, 3, 5  # example sizes; all three dimensions are dynamic
_TOKENS = 16  # compared with torch
_PREFIX = 12
_SHORT = 7


@dataclass(frozen=True)
class CausalTask(Task):
    """See :class:`edgetie.export.tasks.base.Task`.

    Attributes:
        caller: ``transformers`` (cache object), ``positions`` (a module of one's own whose
            ``forward`` takes ``position_ids`` and whose attention is causal
            ``scaled_dot_product_attention``) or ``plain`` (no cache: the prefix is run again).
        position_ids: whether a module of one's own takes them.
    """

    name = "causal-lm"

    caller: str
    position_ids: bool

    @property
    def replaces_attention(self) -> bool:
        return self.caller == "transformers"

    def graphs(self, module: torch.nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        wrapper = CausalLM(
            module,
            caller=self.caller,
            position_ids=self.position_ids,
            fused=fused,
            last_only=last_only,
        )
        dtype = next(module.parameters()).dtype
        past = tuple(
            torch.zeros(_BATCH, layer.kv_heads, _PAST, layer.head_size, dtype=dtype)
            for layer in self.layers
            for _ in ("key", "value")
        )
        length = _PAST if past else 0
        arguments = (
            torch.ones(_BATCH, _SEQUENCE, dtype=torch.long),
            torch.ones(_BATCH, length + _SEQUENCE, dtype=torch.long),
            *past,
        )
        batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
        # past + sequence, which torch.export cannot say: it is left to find out what holds
        total, past_length = torch.export.Dim.DYNAMIC, torch.export.Dim("past_sequence")
        shapes = (
            {0: batch, 1: sequence},
            {0: batch, 1: total if past else sequence},
            *((tuple({0: batch, 2: past_length} for _ in past),) if past else ()),
        )
        names = cache_names(len(self.layers), "past_key_values")
        dimensions = [
            ("input_ids", 0, "batch"),
            ("input_ids", 1, "sequence"),
            ("attention_mask", 1, "total_sequence"),
            *((names[0], 2, "past_sequence") for _ in past[:1]),
        ]
        return [
            Graph(
                file=MODEL,
                module=wrapper,
                arguments=arguments,
                shapes=shapes,
                inputs=["input_ids", "attention_mask", *names],
                outputs=["logits", *cache_names(len(self.layers), "present")],
                dimensions=tuple(dimensions),
            )
        ]

    def expect(self, module: torch.nn.Module) -> Expected:
        count = min(_TOKENS, self.max_positions or _TOKENS)
        tokens = np.random.default_rng(0).integers(0, self.vocab_size, count)
        ids = torch.from_numpy(tokens)[None]
        with torch.no_grad():
            if self.position_ids:
                output = module(ids, position_ids=torch.arange(count)[None])
            else:
                output = module(ids)
        return Expected({"input_ids": tokens}, logits_of(output)[0].float().numpy())

    def measure(self, directory: Path, expected: Expected, dtype: type[Any]) -> Agreement:
        with open_graph(directory / MODEL) as session:
            return self._measure(session, expected, dtype)

    def _measure(self, session: Any, expected: Expected, dtype: type[Any]) -> Agreement:
        tokens = expected.inputs["input_ids"]
        count = len(tokens)
        prefix, short = min(_PREFIX, count - 1), min(_SHORT, count - 1)

        def run(ids: Any, mask: Any, past: list[Any]) -> tuple[Any, list[Any]]:
            if not past:
                past = [
                    np.zeros((len(ids), layer.kv_heads, 0, layer.head_size), dtype)
                    for layer in self.layers
                    for _ in range(2)
                ]
            names = [value.name for value in session.get_inputs()]
            logits, *present = session.run(None, dict(zip(names, [ids, mask, *past], strict=True)))
            return logits[:, -1], present

        def error(got: Array, position: int) -> float:
            return largest_error(got, expected.logits[position])

        logits, cache = run(tokens[None, :prefix], np.ones((1, prefix), np.int64), [])
        prefill, cached = error(logits[0], prefix - 1), 0.0
        for position in range(prefix, count) if self.layers else ():
            mask = np.ones((1, position + 1), np.int64)
            logits, cache = run(tokens[None, position : position + 1], mask, cache)
            cached = max(cached, error(logits[0], position))
        rows = np.zeros((2, prefix), np.int64)
        mask = np.zeros((2, prefix), np.int64)
        rows[0, -short:], mask[0, -short:] = tokens[:short], 1
        rows[1], mask[1] = tokens[:prefix], 1
        logits, cache = run(rows, mask, [])
        padded = max(error(logits[0], short - 1), error(logits[1], prefix - 1))
        if self.layers:
            mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
            logits, _ = run(
                np.stack([tokens[short : short + 1], tokens[prefix : prefix + 1]]), mask, cache
            )
            padded = max(padded, error(logits[0], short), error(logits[1], prefix))
        return Agreement(prefill, cached, padded, float(np.abs(expected.logits).max()))


def probe(module: torch.nn.Module, config: Any) -> CausalTask:
    """Run the model once on three tokens and read off what it needs."""
    parameters = inspect.signature(module.forward).parameters
    ids = torch.arange(_PROBE_TOKENS)[None]
    position_ids = False
    with torch.no_grad():
        keyword = cache_keyword(module)
        if keyword is not None and config is not None:
            output = module(input_ids=ids, use_cache=True)
            vocab = logits_of(output).shape[-1]
            layers, why = _cache_shapes(getattr(output, keyword, None))
            caller = "plain" if why else "transformers"
        elif "position_ids" in parameters:
            counter = _CountAttention()
            with counter:
                output = module(ids, position_ids=ids)
            vocab = logits_of(output).shape[-1]
            layers, why = tuple(counter.layers), counter.why
            caller = "plain" if why else "positions"
            position_ids = True
        else:
            vocab = logits_of(module(ids)).shape[-1]
            layers, why, caller = (), "forward takes neither a cache nor position_ids", "plain"
    layers = layers if caller != "plain" else ()
    return CausalTask(vocab, longest(config), caller, position_ids, layers=layers, why_plain=why)


def _cache_shapes(cache: Any) -> tuple[tuple[LayerShape, ...], str | None]:
    layers = getattr(cache, "layers", None)
    if not layers:
        return (), "the model returns no KV cache"
    shapes = []
    for index, layer in enumerate(layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.ndim != 4 or keys.shape != values.shape:
            return (), f"layer {index} keeps a state that is no key-value cache"
        shapes.append(LayerShape(keys.shape[1], keys.shape[3]))
    return tuple(shapes), None


class _CountAttention(TorchFunctionMode):
    """Watches ``scaled_dot_product_attention`` calls during the trial run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[LayerShape] = []
        self.refused = False
        self.why: str | None = "no causal scaled_dot_product_attention in it"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            try:
                query, key, value, _ = causal_arguments(args, kwargs)
                attention.require_fusable(query, key, value)
                self.layers.append(LayerShape(key.shape[1], key.shape[3]))
                self.why = self.why if self.refused else None
            except Unfusable as error:
                self.why, self.refused = str(error), True
        return func(*args, **kwargs)
