"""Export causal language models: decoders with a cache of keys and values or recurrent states."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgetie.bundle.names import MODEL
from edgetie.errors import ExportError, UnfusableError
from edgetie.export.attention.group_query_attention import require_fusable
from edgetie.export.attention.transformers_cache import recurrent_states, run_with_cache
from edgetie.export.patches.position_tables import FindPositionTables, trial_ids
from edgetie.export.tasks.base import (
    BATCH,
    Graph,
    GraphInput,
    Task,
    cache_inputs,
    key_value,
    logits_of,
    read_max_positions,
    torch_logits,
)
from edgetie.export.tasks.causal_model import CausalCall, CausalLM, causal_arguments
from edgetie.export.tasks.comparison import (
    Agreement,
    Array,
    DecoderRunner,
    ReferenceRun,
    cpu_session,
    largest_error,
    largest_logit,
    left_pad,
)
from edgetie.graph.tensors import CacheTensor
from edgetie.sources.cache_argument import cache_keyword

# example sizes to trace with, both dynamic: unlike sizes of models, and longer than a convolution
_SEQUENCE, _PAST = 11, 13
_TOKENS = 16  # compared with torch
_PREFIX = 12
_SHORT = 7
_SHORTEST = (1, 2)  # shorter than the sequence that is traced


@dataclass(frozen=True)
class CausalTask(Task):
    """See :class:`edgetie.export.tasks.base.Task`; ``call`` says how the model is called."""

    name = "causal-lm"

    call: CausalCall

    @property
    def replaces_attention(self) -> bool:
        recurrent = any(not tensor.grows for tensor in self.cache)
        return self.call.mode == "transformers" and (self.cached_attentions > 0 or not recurrent)

    def without_cache(self) -> Task | None:
        if self.call.mode == "no_cache":
            return None
        call = replace(self.call, mode="no_cache", state_attributes={})
        return replace(self, call=call, cache=())

    def graphs(self, module: nn.Module, *, fused: bool, last_only: bool) -> list[Graph]:
        dtype = next(module.parameters()).dtype
        sequence, length = self._example_sizes()
        ids = torch.ones(BATCH, sequence, dtype=torch.long)
        mask = torch.ones(BATCH, length + sequence, dtype=torch.long)
        return [
            Graph(
                file=MODEL,
                module=CausalLM(module, self.call, self.cache, fused=fused, last_only=last_only),
                tensors=(
                    GraphInput("input_ids", ids, {0: "batch_size", 1: "sequence_length"}),
                    GraphInput(
                        "attention_mask", mask, {0: "batch_size", 1: "total_sequence_length"}
                    ),
                    *cache_inputs(self.cache, length, dtype),
                ),
                outputs=["logits", *(tensor.present for tensor in self.cache)],
                parameters=2,
            )
        ]

    def _example_sizes(self) -> tuple[int, int]:
        """Numbers of tokens and cached tokens to trace with, at most as many as the model takes."""
        limit = self.max_positions or _SEQUENCE + _PAST
        sequence = max(1, min(_SEQUENCE, limit // 2))
        return sequence, min(_PAST, limit - sequence) if self.cache else 0

    def run_reference(self, module: nn.Module) -> ReferenceRun:
        count = min(_TOKENS, self.max_positions or _TOKENS)
        tokens = np.random.default_rng(0).integers(0, self.vocab_size, count)
        logits = [self._logits(module, tokens)]
        _require_causal(logits[0], self._logits(module, tokens[:_SHORT]))
        logits += [self._logits(module, tokens[:length])[-1:] for length in _SHORTEST]
        return ReferenceRun({"input_ids": tokens}, np.concatenate(logits))

    def _logits(self, module: nn.Module, tokens: Array) -> Array:
        positions = {"position_ids": np.arange(len(tokens))[None]} if self.call.position_ids else {}
        logits: Array = torch_logits(module, tokens[None], **positions)[0]
        if len(logits) != len(tokens):
            raise ExportError(
                f"forward gives logits of {len(logits)} of {len(tokens)} tokens; it must give "
                "those of every token"
            )
        return logits

    def compare(self, directory: Path, reference: ReferenceRun, dtype: type[Any]) -> Agreement:
        with cpu_session(directory / MODEL) as session:
            return self._compare_tokens(DecoderRunner(session, self.cache, dtype), reference)

    def _compare_tokens(self, run: DecoderRunner, reference: ReferenceRun) -> Agreement:
        tokens = reference.inputs["input_ids"]
        count = len(tokens)
        prefix, short = min(_PREFIX, count - 1), min(_SHORT, count - 1)

        def error(logits: Array, position: int) -> float:
            return largest_error(logits[-1], reference.logits[position])

        logits, cache = run([tokens[None, :prefix], np.ones((1, prefix), np.int64)])
        prefill, cached = error(logits[0], prefix - 1), 0.0
        for index, length in enumerate(_SHORTEST):
            logits, _ = run([tokens[None, :length], np.ones((1, length), np.int64)])
            prefill = max(prefill, error(logits[0], count + index))
        for position in range(prefix, count) if self.cache else ():
            mask = np.ones((1, position + 1), np.int64)
            logits, cache = run([tokens[None, position : position + 1], mask], cache)
            cached = max(cached, error(logits[0], position))
        ids, mask = left_pad([tokens[:short], tokens[:prefix]])
        logits, cache = run([ids, mask])
        padded = max(error(logits[0], short - 1), error(logits[1], prefix - 1))
        if self.cache:
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
            logits, _ = run([tokens[[short, prefix], None], mask], cache)
            padded = max(padded, error(logits[0], short), error(logits[1], prefix))
        return Agreement(prefill, cached, padded, largest_logit(reference.logits))


def _require_causal(logits: Array, prefix_logits: Array) -> None:
    change = largest_error(logits[: len(prefix_logits)], prefix_logits)
    if change > 1e-2 * largest_logit(logits):
        raise ExportError(
            "its logits of a token change with the tokens that follow, so it cannot write token by "
            "token; a model that fills in tokens is exported as task masked-lm"
        )


def trial_run(module: nn.Module, config: Any) -> CausalTask:
    """Run the model once on a few tokens to find its cache and its embeddings of positions."""
    sizes = (getattr(config, name, None) for name in ("vocab_size", "pad_token_id"))
    vocab_size, padding = (size if isinstance(size, int) else None for size in sizes)
    ids = trial_ids(vocab_size or _smallest_embedding(module), padding)
    keyword = cache_keyword(module)
    find_tables = FindPositionTables()
    with torch.no_grad(), find_tables:
        if keyword is not None and config is not None:
            task = _run_transformers(module, config, keyword, ids)
        elif "position_ids" in inspect.signature(module.forward).parameters:
            task = _run_with_positions(module, ids)
        else:
            reason = "forward takes neither a cache nor position_ids"
            task = _without_cache(logits_of(module(ids)), CausalCall("no_cache"), reason)
    tables = find_tables.tables(module)
    limit = read_max_positions(config, module) or _smallest_position_table(module, tables)
    return replace(task, max_positions=limit, call=replace(task.call, position_tables=tables))


def _run_transformers(module: nn.Module, config: Any, keyword: str, ids: Tensor) -> CausalTask:
    output, cache, states = run_with_cache(module, config, keyword, ids)
    decoder_cache = getattr(cache, "self_attention_cache", None)
    is_pair = decoder_cache is not None
    try:
        tensors, attributes = _describe_cache(decoder_cache if is_pair else cache, states)
    except UnfusableError as error:
        call = CausalCall("no_cache", encoder_decoder_cache=is_pair)
        return _without_cache(logits_of(output), call, str(error))
    call = CausalCall("transformers", encoder_decoder_cache=is_pair, state_attributes=attributes)
    return CausalTask(logits_of(output).shape[-1], None, call, cache=tensors)


def _run_with_positions(module: nn.Module, ids: Tensor) -> CausalTask:
    record = _RecordAttention()
    with record:
        logits = logits_of(module(ids, position_ids=torch.arange(ids.shape[1])[None]))
    if record.reason is not None:
        return _without_cache(logits, CausalCall("no_cache", position_ids=True), record.reason)
    cache = tuple(chain.from_iterable(record.layers))
    return CausalTask(
        logits.shape[-1], None, CausalCall("positions", position_ids=True), cache=cache
    )


def _without_cache(logits: Tensor, call: CausalCall, reason: str) -> CausalTask:
    return CausalTask(logits.shape[-1], None, call, no_cache_reason=reason)


def _smallest_embedding(module: nn.Module) -> int | None:
    """The fewest vectors that an embedding has: the vocabulary has at least as many tokens."""
    embeddings = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    return min((embedding.num_embeddings for embedding in embeddings), default=None)


def _smallest_position_table(module: nn.Module, tables: dict[str, int]) -> int | None:
    """The fewest positions that a table of positions has."""
    lengths = {name: len(tensor) for name, tensor in module.named_parameters()}
    lengths |= {name: len(tensor) for name, tensor in module.named_buffers() if tensor.ndim}
    return min(
        (lengths[name] - offset for name, offset in tables.items() if name in lengths), default=None
    )


def _describe_cache(
    cache: Any, attribute_states: dict[str, Tensor]
) -> tuple[tuple[CacheTensor, ...], dict[str, str]]:
    """Describe the cache's tensors.

    Args:
        cache: transformers' object, as a run left it.
        attribute_states: recurrent states in attributes of modules, by the attribute's name.

    Returns:
        The tensors, and the attributes of those that are in one.

    Raises:
        UnfusableError: if there is no cache, or it has layers of another kind.
    """
    layers = getattr(cache, "layers", None)
    if not layers:
        raise UnfusableError("the model returns no cache")
    states, attributes = recurrent_states(cache), {}
    for path, state in attribute_states.items():
        number = re.search(r"\d+", path)
        name = f"{number[0] if number else 0}.{path.rpartition('.')[2]}"
        attributes[name], states[name] = path, state
    tensors = [CacheTensor(name, tuple(state.shape[1:])) for name, state in states.items()]
    recurrent_layers = {_layer_number(tensor) for tensor in tensors}
    for index, layer in enumerate(layers):
        keys: Any = getattr(layer, "keys", None)
        values: Any = getattr(layer, "values", None)
        if _is_key_value(keys, values):
            tensors += key_value(str(index), keys, values)
        elif keys is not None or index not in recurrent_layers:
            raise UnfusableError(f"layer {index} keeps neither keys and values nor a state")
    return tuple(sorted(tensors, key=_layer_number)), attributes


def _layer_number(tensor: CacheTensor) -> int:
    return int(tensor.name.partition(".")[0])


def _is_key_value(keys: Any, values: Any) -> bool:
    return (
        keys is not None
        and values is not None
        and keys.ndim == values.ndim == 4
        and keys.shape[:3] == values.shape[:3]
        and keys.shape[2] > 0
    )


class _RecordAttention(TorchFunctionMode):
    """Record the keys and values of ``scaled_dot_product_attention`` during a trial run.

    Attributes:
        layers: the cache of each call, in order.
        reason: why the calls cannot use a cache; ``None`` if they can.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[tuple[CacheTensor, ...]] = []
        self.reason: str | None = "no causal scaled_dot_product_attention in it"
        self._refused = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            try:
                query, key, value, _ = causal_arguments(args, kwargs)
                require_fusable(query, key, value)
                self.layers.append(key_value(str(len(self.layers)), key, value))
                self.reason = self.reason if self._refused else None
            except UnfusableError as error:
                self.reason, self._refused = str(error), True
        return func(*args, **kwargs)
