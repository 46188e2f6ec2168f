"""Causal language models: decoders with a cache, of keys and values or of states."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from edgetie.bundle.names import MODEL
from edgetie.errors import ExportError, UnfusableError
from edgetie.export.attention.group_query_attention import require_fusable
from edgetie.export.attention.transformers_cache import recurrent_states, run_with_cache
from edgetie.export.patches.position_tables import FindPositionTables, trial_ids
from edgetie.export.tasks.base import (
    Graph,
    Task,
    key_value,
    logits_of,
    longest,
)
from edgetie.export.tasks.causal_model import CausalLM, causal_arguments
from edgetie.export.tasks.comparison import (
    Agreement,
    Array,
    ReferenceRun,
    cpu_session,
    largest_error,
    largest_logit,
)
from edgetie.graph.tensors import CacheTensor
from edgetie.sources.cache_argument import cache_keyword

# example sizes, all three dynamic: unlike sizes of models, and longer than a convolution
_BATCH, _SEQUENCE, _PAST = 2, 11, 13
_TOKENS = 16  # compared with torch
_PREFIX = 12
_SHORT = 7
_SHORTEST = (1, 2)  # shorter than what a graph is traced with


@dataclass(frozen=True)
class CausalTask(Task):
    """See :class:`edgetie.export.tasks.base.Task`.

    Attributes:
        caller: ``transformers`` (cache object), ``positions`` (a module of one's own whose
            ``forward`` takes ``position_ids`` and whose attention is causal
            ``scaled_dot_product_attention``) or ``plain`` (no cache: the prefix is run again).
        position_ids: whether a module of one's own takes them.
        tables: offsets of the tables of positions, see :mod:`position_tables`.
        decoder_part: whether the cache is that of an encoder-decoder's decoder.
        attributes: of the cache's tensors, those that a module keeps in an attribute, and which.
    """

    name = "causal-lm"

    caller: str
    position_ids: bool
    tables: dict[str, int] = field(default_factory=dict, kw_only=True)
    decoder_part: bool = field(default=False, kw_only=True)
    attributes: dict[str, str] = field(default_factory=dict, kw_only=True)

    @property
    def replaces_attention(self) -> bool:
        stateful = any(not tensor.grows for tensor in self.cache)
        return self.caller == "transformers" and (self.cached_attentions > 0 or not stateful)

    def without_cache(self) -> Task | None:
        if self.caller == "plain":
            return None
        return replace(self, caller="plain", cache=(), attributes={})

    def graphs(self, module: torch.nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        wrapper = CausalLM(
            module,
            caller=self.caller,
            position_ids=self.position_ids,
            cache=self.cache,
            tables=self.tables,
            decoder_part=self.decoder_part,
            attributes=self.attributes,
            fused=fused,
            last_only=last_only,
        )
        dtype = next(module.parameters()).dtype
        sequence, length = self._example_sizes()
        past = tuple(
            torch.zeros(tensor.shape(_BATCH, length), dtype=dtype) for tensor in self.cache
        )
        arguments = (
            torch.ones(_BATCH, sequence, dtype=torch.long),
            torch.ones(_BATCH, length + sequence, dtype=torch.long),
            *past,
        )
        # torch is left to find out what holds: a name of one's own takes no bound, and cannot say
        # that the mask is as long as past and sequence
        dynamic = torch.export.Dim.DYNAMIC
        shapes = (
            {0: dynamic, 1: dynamic},
            {0: dynamic, 1: dynamic},
            *((tuple(map(_dynamic, self.cache)),) if past else ()),
        )
        dimensions = [
            ("input_ids", 0, "batch_size"),
            ("input_ids", 1, "sequence_length"),
            ("attention_mask", 1, "total_sequence_length"),
            *(
                (tensor.past, axis, name)
                for tensor in self.cache
                for axis, name in tensor.dynamic_axes().items()
            ),
        ]
        return [
            Graph(
                file=MODEL,
                module=wrapper,
                arguments=arguments,
                shapes=shapes,
                inputs=["input_ids", "attention_mask", *(tensor.past for tensor in self.cache)],
                outputs=["logits", *(tensor.present for tensor in self.cache)],
                dimensions=tuple(dimensions),
            )
        ]

    def _example_sizes(self) -> tuple[int, int]:
        """Tokens and cached tokens to trace with, as many as the model takes."""
        longest = self.max_positions or _SEQUENCE + _PAST
        sequence = max(1, min(_SEQUENCE, longest // 2))
        return sequence, min(_PAST, longest - sequence) if self.cache else 0

    def run_reference(self, module: torch.nn.Module) -> ReferenceRun:
        count = min(_TOKENS, self.max_positions or _TOKENS)
        tokens = np.random.default_rng(0).integers(0, self.vocab_size, count)
        logits = [self._logits(module, tokens)]
        _require_causal(logits[0], self._logits(module, tokens[:_SHORT]))
        logits += [self._logits(module, tokens[:length])[-1:] for length in _SHORTEST]
        return ReferenceRun({"input_ids": tokens}, np.concatenate(logits))

    def _logits(self, module: torch.nn.Module, tokens: Array) -> Array:
        ids = torch.from_numpy(tokens)[None]
        given = {"position_ids": torch.arange(len(tokens))[None]} if self.position_ids else {}
        with torch.no_grad():
            logits = np.asarray(logits_of(module(ids, **given))[0].float().numpy())
        if len(logits) != len(tokens):
            raise ExportError(
                f"forward gives logits of {len(logits)} of {len(tokens)} tokens; it must give "
                "those of every token"
            )
        return logits

    def compare(self, directory: Path, expected: ReferenceRun, dtype: type[Any]) -> Agreement:
        with cpu_session(directory / MODEL) as session:
            return self._compare(session, expected, dtype)

    def _compare(self, session: Any, expected: ReferenceRun, dtype: type[Any]) -> Agreement:
        tokens = expected.inputs["input_ids"]
        count = len(tokens)
        prefix, short = min(_PREFIX, count - 1), min(_SHORT, count - 1)

        def run(ids: Any, mask: Any, past: list[Any]) -> tuple[Any, list[Any]]:
            if not past:
                past = [np.zeros(tensor.shape(len(ids)), dtype) for tensor in self.cache]
            names = [value.name for value in session.get_inputs()]
            logits, *present = session.run(None, dict(zip(names, [ids, mask, *past], strict=True)))
            return logits[:, -1], present

        def error(got: Array, position: int) -> float:
            return largest_error(got, expected.logits[position])

        logits, cache = run(tokens[None, :prefix], np.ones((1, prefix), np.int64), [])
        prefill, cached = error(logits[0], prefix - 1), 0.0
        for row, length in enumerate(_SHORTEST):
            few, _ = run(tokens[None, :length], np.ones((1, length), np.int64), [])
            prefill = max(prefill, error(few[0], count + row))
        for position in range(prefix, count) if self.cache else ():
            mask = np.ones((1, position + 1), np.int64)
            logits, cache = run(tokens[None, position : position + 1], mask, cache)
            cached = max(cached, error(logits[0], position))
        rows = np.zeros((2, prefix), np.int64)
        mask = np.zeros((2, prefix), np.int64)
        rows[0, -short:], mask[0, -short:] = tokens[:short], 1
        rows[1], mask[1] = tokens[:prefix], 1
        logits, cache = run(rows, mask, [])
        padded = max(error(logits[0], short - 1), error(logits[1], prefix - 1))
        if self.cache:
            mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
            logits, _ = run(
                np.stack([tokens[short : short + 1], tokens[prefix : prefix + 1]]), mask, cache
            )
            padded = max(padded, error(logits[0], short), error(logits[1], prefix))
        return Agreement(prefill, cached, padded, largest_logit(expected.logits))


def _require_causal(whole: Array, short: Array) -> None:
    change = largest_error(whole[: len(short)], short)
    if change > 1e-2 * largest_logit(whole):
        raise ExportError(
            "its logits of a token change with the tokens that follow, so it cannot write token by "
            "token; a model that fills in tokens is exported as task masked-lm"
        )


def trial_run(module: torch.nn.Module, config: Any) -> CausalTask:
    """Run the model once on a few tokens and read off what it needs."""
    parameters = inspect.signature(module.forward).parameters
    sizes = (getattr(config, name, None) for name in ("vocab_size", "pad_token_id"))
    vocab_size, pad = (size if isinstance(size, int) else None for size in sizes)
    ids = trial_ids(vocab_size or _fewest_rows(module), pad)
    position_ids, decoder_part = False, False
    cache: tuple[CacheTensor, ...]
    attributes: dict[str, str] = {}
    watch = FindPositionTables()
    with torch.no_grad(), watch:
        keyword = cache_keyword(module)
        if keyword is not None and config is not None:
            output, found, held = run_with_cache(module, config, keyword, ids)
            vocab = logits_of(output).shape[-1]
            own = getattr(found, "self_attention_cache", None)
            decoder_part = own is not None
            cache, attributes, why = _cache_shapes(own if decoder_part else found, held)
            caller = "plain" if why else "transformers"
        elif "position_ids" in parameters:
            counter = _CountAttention()
            with counter:
                output = module(ids, position_ids=torch.arange(ids.shape[1])[None])
            vocab = logits_of(output).shape[-1]
            cache, why = tuple(chain.from_iterable(counter.layers)), counter.why
            caller = "plain" if why else "positions"
            position_ids = True
        else:
            vocab = logits_of(module(ids)).shape[-1]
            cache, why, caller = (), "forward takes neither a cache nor position_ids", "plain"
    return CausalTask(
        vocab,
        longest(config, module) or _rows(module, watch.tables(module)),
        caller,
        position_ids,
        tables=watch.tables(module),
        decoder_part=decoder_part,
        attributes=attributes if caller != "plain" else {},
        cache=cache if caller != "plain" else (),
        no_cache_reason=why,
    )


def _fewest_rows(module: torch.nn.Module) -> int | None:
    """Rows of the smallest embedding: that many tokens there are at least."""
    tables = [part for part in module.modules() if isinstance(part, torch.nn.Embedding)]
    return min((table.num_embeddings for table in tables), default=None)


def _rows(module: torch.nn.Module, tables: dict[str, int]) -> int | None:
    """How many positions the smallest table of them has."""
    sizes = {name: len(table) for name, table in module.named_parameters()}
    sizes |= {name: len(table) for name, table in module.named_buffers() if table.ndim}
    return min(
        (sizes[name] - first for name, first in tables.items() if name in sizes), default=None
    )


def _dynamic(tensor: CacheTensor) -> dict[int, Any]:
    return dict.fromkeys(tensor.dynamic_axes(), torch.export.Dim.DYNAMIC)


def _cache_shapes(
    cache: Any, held: dict[str, torch.Tensor]
) -> tuple[tuple[CacheTensor, ...], dict[str, str], str | None]:
    """The cache's tensors; which of them are attributes; why there are none.

    Args:
        cache: transformers' object, as a run left it.
        held: states in attributes of modules.
    """
    layers = getattr(cache, "layers", None)
    if not layers:
        return (), {}, "the model returns no cache"
    states, attributes = recurrent_states(cache), {}
    for path, state in held.items():
        number = re.search(r"\d+", path)
        name = f"{number[0] if number else 0}.{path.rpartition('.')[2]}"
        attributes[name], states[name] = path, state
    shapes = [CacheTensor(name, tuple(state.shape[1:])) for name, state in states.items()]
    recurrent = {_layer(shape) for shape in shapes}
    for index, layer in enumerate(layers):
        keys: Any = getattr(layer, "keys", None)
        values: Any = getattr(layer, "values", None)
        if _is_plain_cache(keys, values):
            shapes += key_value(str(index), keys, values)
        elif keys is not None or index not in recurrent:
            return (), {}, f"layer {index} keeps neither keys and values nor a state"
    return tuple(sorted(shapes, key=_layer)), attributes, None


def _layer(tensor: CacheTensor) -> int:
    return int(tensor.name.partition(".")[0])


def _is_plain_cache(keys: Any, values: Any) -> bool:
    return (
        keys is not None
        and values is not None
        and keys.ndim == values.ndim == 4
        and keys.shape[:3] == values.shape[:3]
        and keys.shape[2] > 0
    )


class _CountAttention(TorchFunctionMode):
    """Watches ``scaled_dot_product_attention`` calls during the trial run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[tuple[CacheTensor, ...]] = []
        self.refused = False
        self.why: str | None = "no causal scaled_dot_product_attention in it"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            try:
                query, key, value, _ = causal_arguments(args, kwargs)
                require_fusable(query, key, value)
                self.layers.append(key_value(str(len(self.layers)), key, value))
                self.why = self.why if self.refused else None
            except UnfusableError as error:
                self.why, self.refused = str(error), True
        return func(*args, **kwargs)
