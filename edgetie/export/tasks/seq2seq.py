"""Encoder–decoder language models: two graphs that share weights.

The encoder's graph also computes the keys and values of cross-attention, which depend on nothing
else; so the decoder is one graph, with or without a past, that reads them as inputs and never
computes them again. What both graphs use, such as the table of token vectors, is one initializer of
one data file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetie.bundle import DECODER, ENCODER
from edgetie.export.attention import Broadcast
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
from edgetie.export.tasks.causal_model import cache_layers, cache_of
from edgetie.export.tasks.running import open_graph
from edgetie.sources.calling import cache_keyword

_BATCH, _SOURCE, _SEQUENCE, _PAST = 2, 7, 3, 5  # example sizes; all of them are dynamic
_SOURCE_TOKENS, _SHORT = 12, 7  # compared with torch
_TOKENS, _PREFIX = 8, 4


@dataclass(frozen=True)
class Seq2SeqTask(Task):
    """See :class:`edgetie.export.tasks.base.Task`; ``layers`` are the decoder's own.

    Attributes:
        cross: the cache of cross-attention.
        hidden_size: of the encoder's output.
    """

    name = "seq2seq-lm"

    cross: tuple[LayerShape, ...]
    hidden_size: int

    @property
    def replaces_attention(self) -> bool:
        return False

    def graphs(self, module: torch.nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        dtype = next(module.parameters()).dtype
        dynamic = torch.export.Dim.DYNAMIC

        def past(layers: tuple[LayerShape, ...], length: int) -> list[torch.Tensor]:
            return [
                torch.zeros(_BATCH, layer.kv_heads, length, layer.head_size, dtype=dtype)
                for layer in layers
                for _ in ("key", "value")
            ]

        ids, mask = (torch.ones(_BATCH, _SOURCE, dtype=torch.long) for _ in range(2))
        cross, own = past(self.cross, _SOURCE), past(self.layers, _PAST)
        crossed = _names("past_key_values", "encoder", len(self.cross))
        passed = _names("past_key_values", "decoder", len(self.layers))
        both = {0: dynamic, 1: dynamic}
        encoder = Graph(
            file=ENCODER,
            module=_Encoder(module),
            arguments=(ids, mask),
            shapes=(both, both),
            inputs=["input_ids", "attention_mask"],
            outputs=["last_hidden_state", *_names("present", "encoder", len(self.cross))],
            dimensions=(("input_ids", 0, "batch"), ("input_ids", 1, "encoder_sequence")),
        )
        decoder = Graph(
            file=DECODER,
            module=_Decoder(module, len(self.cross), self.hidden_size),
            arguments=(torch.ones(_BATCH, _SEQUENCE, dtype=torch.long), mask, *cross, *own),
            shapes=(both, both, tuple({0: dynamic, 2: dynamic} for _ in [*cross, *own])),
            inputs=["input_ids", "encoder_attention_mask", *crossed, *passed],
            outputs=["logits", *_names("present", "decoder", len(self.layers))],
            dimensions=(
                ("input_ids", 0, "batch"),
                ("input_ids", 1, "sequence"),
                ("encoder_attention_mask", 1, "encoder_sequence"),
                (passed[0], 2, "past_sequence"),
            ),
        )
        return [encoder, decoder]

    def expect(self, module: torch.nn.Module) -> Expected:
        limit = self.max_positions or _SOURCE_TOKENS
        random = np.random.default_rng(0)
        source = random.integers(0, self.vocab_size, (1, min(_SOURCE_TOKENS, limit)))
        target = random.integers(0, self.vocab_size, (1, min(_TOKENS, limit)))
        logits = [_run(module, ids, target) for ids in (source, source[:, :_SHORT])]
        inputs = {"input_ids": source, "decoder_input_ids": target}
        return Expected(inputs, np.concatenate(logits))

    def measure(self, directory: Path, expected: Expected, dtype: type[Any]) -> Agreement:
        source, target = expected.inputs["input_ids"], expected.inputs["decoder_input_ids"]
        count = target.shape[1]
        whole, short = expected.logits[:count], expected.logits[count:]
        rows = np.repeat(source, 2, axis=0)
        mask = np.ones_like(rows)
        rows[1, _SHORT:], mask[1, _SHORT:] = 0, 0
        one = np.ones_like(source)
        with open_graph(directory / ENCODER) as encoder:
            _, *cross = encoder.run(None, {"input_ids": source, "attention_mask": one})
            _, *crossed = encoder.run(None, {"input_ids": rows, "attention_mask": mask})
        prefill = cached = 0.0
        with open_graph(directory / DECODER) as decoder:

            def run(ids: Array, mask: Array, cross: list[Array], past: list[Array]) -> Any:
                past = past or [
                    np.zeros((len(ids), layer.kv_heads, 0, layer.head_size), dtype)
                    for layer in self.layers
                    for _ in range(2)
                ]
                names = [value.name for value in decoder.get_inputs()]
                feeds = dict(zip(names, [ids, mask, *cross, *past], strict=True))
                logits, *present = decoder.run(None, feeds)
                return logits, present

            logits, past = run(target[:, :_PREFIX], one, cross, [])
            prefill = largest_error(logits[0], whole[:_PREFIX])
            for position in range(_PREFIX, count):
                logits, past = run(target[:, position : position + 1], one, cross, past)
                cached = max(cached, largest_error(logits[0, 0], whole[position]))
            logits, past = run(np.repeat(target, 2, axis=0), mask, crossed, [])
            padded = max(largest_error(logits[0], whole), largest_error(logits[1], short))
        return Agreement(prefill, cached, padded, float(np.abs(expected.logits).max()))


class _Encoder(torch.nn.Module):
    """The encoder, and the keys and values that cross-attention makes of its output."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.cache = cache_keyword(model) or ""

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        model: Any = self.model
        with Broadcast():
            hidden = _encoder_of(model)(input_ids=input_ids, attention_mask=mask)[0]
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        # all that does not become a key or value of cross-attention is dead code
        with Broadcast():
            model(
                encoder_outputs=_encoded(hidden),
                attention_mask=mask,
                decoder_input_ids=torch.zeros_like(input_ids[:, :1]),
                use_cache=True,
                **{self.cache: cache},
            )
        layers = cache.cross_attention_cache.layers
        return (hidden, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))


class _Decoder(torch.nn.Module):
    """The decoder, its cross-attention over keys and values that are given."""

    def __init__(self, model: torch.nn.Module, cross: int, hidden_size: int) -> None:
        super().__init__()
        self.model = model
        self.cross = cross
        self.hidden_size = hidden_size
        self.cache = cache_keyword(model) or ""

    def forward(
        self, input_ids: torch.Tensor, mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        from transformers.cache_utils import EncoderDecoderCache

        cross, own = (
            cache_layers(part) for part in (past[: 2 * self.cross], past[2 * self.cross :])
        )
        cache = EncoderDecoderCache(cache_of(own), cache_of(cross))
        cache.is_updated = dict.fromkeys(range(self.cross), True)
        # only its shape is looked at: the keys and values made of it are in the cache
        hidden = torch.zeros(*mask.shape, self.hidden_size, dtype=past[0].dtype)
        with Broadcast():
            output = self.model(
                encoder_outputs=_encoded(hidden),
                attention_mask=mask,
                decoder_input_ids=input_ids,
                use_cache=True,
                **{self.cache: cache},
            )
        return (logits_of(output), *(tensor for layer in own for tensor in layer.result))


def probe(module: torch.nn.Module, config: Any) -> Seq2SeqTask:
    """Run the model once on a few tokens.

    Raises:
        TypeError: if it keeps no keys and values of cross-attention.
    """
    ids = torch.ones(1, _SHORT, dtype=torch.long)
    with torch.no_grad():
        hidden = _encoder_of(module)(input_ids=ids)[0]
        output = module(
            encoder_outputs=_encoded(hidden), decoder_input_ids=ids[:, :2], use_cache=True
        )
    cache = getattr(output, cache_keyword(module) or "", None)
    shapes = []
    for part in ("self_attention_cache", "cross_attention_cache"):
        layers = getattr(getattr(cache, part, None), "layers", None)
        if not layers:
            raise TypeError(f"the model returns no {part.replace('_', ' ')}")
        shapes.append(tuple(LayerShape(la.keys.shape[1], la.keys.shape[3]) for la in layers))
    return Seq2SeqTask(
        logits_of(output).shape[-1],
        longest(config),
        shapes[1],
        hidden.shape[-1],
        layers=shapes[0],
    )


def _encoder_of(module: Any) -> Any:
    return module.get_encoder()


def _encoded(hidden: torch.Tensor) -> Any:
    """An encoder's output, with every field that a decoder may copy into its own."""
    from transformers.modeling_outputs import MoEModelOutput

    return MoEModelOutput(last_hidden_state=hidden)


def _names(prefix: str, side: str, count: int) -> list[str]:
    """``past_key_values.0.decoder.key`` and so on."""
    return [
        f"{'.'.join(parts)}.{side}.{part}"
        for *parts, part in (name.split(".") for name in cache_names(count, prefix))
    ]


def _run(module: torch.nn.Module, source: Array, target: Array) -> Array:
    with torch.no_grad():
        output = module(
            input_ids=torch.from_numpy(source), decoder_input_ids=torch.from_numpy(target)
        )
    return np.asarray(logits_of(output)[0].float().numpy())
