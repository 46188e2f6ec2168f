"""Export causal language models: decoders with a cache of keys and values or recurrent states."""

import inspect
import re
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgetie.bundle.names import MODEL
from edgetie.errors import ExportError, UnfusableError
from edgetie.export.attention.broadcast import AttentionMode, attention
from edgetie.export.attention.group_query_attention import require_fusable
from edgetie.export.attention.transformers_cache import recurrent_states, run_with_cache
from edgetie.export.comparison import (
    Agreement,
    Array,
    DecoderRunner,
    ReferenceRun,
    cpu_session,
    largest_error,
    largest_logit,
    left_pad,
)
from edgetie.export.patches.position_tables import FindPositionTables, trial_ids
from edgetie.export.tasks.base import (
    Graph,
    Task,
    cache_inputs,
    key_value,
    logits_of,
    read_max_positions,
    token_input,
    torch_logits,
)
from edgetie.export.tasks.causal_model import CausalCall, CausalLM, causal_arguments
from edgetie.graph.tensors import CacheTensor
from edgetie.runtime.adapters import AdapterFile, adapter_path
from edgetie.sources.source import cache_keyword

# example sizes to trace with, both dynamic: unlike sizes of models, and longer than a convolution
_SEQUENCE, _PAST = 11, 13
_TOKENS = 16  # compared with torch
_PREFIX = 12
_SHORT = 7
_SHORTEST = (1, 2)  # shorter than the sequence that is traced
_SPECIAL = ("pad_token_id", "image_token_id", "image_token_index")


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
        limit = self.max_positions or _SEQUENCE + _PAST
        sequence = max(1, min(_SEQUENCE, limit // 2))
        past = min(_PAST, limit - sequence) if self.cache else 0
        tensors = (
            token_input("input_ids", sequence),
            token_input("attention_mask", past + sequence, "total_sequence_length"),
            *cache_inputs(self.cache, past, next(module.parameters()).dtype),
        )
        wrapper = CausalLM(module, self.call, self.cache, fused=fused, last_only=last_only)
        outputs = ["logits", *(tensor.present for tensor in self.cache)]
        return [Graph(MODEL, wrapper, tensors, outputs, parameters=2)]

    def run_reference(self, module: nn.Module) -> ReferenceRun:
        count = min(_TOKENS, self.max_positions or _TOKENS)
        tokens = np.random.default_rng(0).integers(0, self.vocab_size, count)
        logits = [self._logits(module, tokens)]
        start = self._logits(module, tokens[:_SHORT])
        change = largest_error(logits[0][: len(start)], start)
        if change > 1e-2 * largest_logit(logits[0]):
            raise ExportError(
                "its logits of a token change with the tokens that follow, so it cannot write "
                "token by token; a model that fills in tokens is exported as task masked-lm"
            )
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
        name = reference.adapter
        adapter = {} if name is None else AdapterFile(adapter_path(directory, name)).tensors
        with cpu_session(directory / MODEL) as session:
            run = DecoderRunner(session, self.cache, dtype, adapter)
            return self._compare_tokens(run, reference)

    def _compare_tokens(self, run: DecoderRunner, reference: ReferenceRun) -> Agreement:
        tokens = reference.inputs["input_ids"]
        count = len(tokens)
        prefix, short = min(_PREFIX, count - 1), min(_SHORT, count - 1)

        def error(logits: Array, position: int) -> float:
            return largest_error(logits[-1], reference.logits[position])

        def feeds(start: int, end: int) -> list[Array]:
            return [tokens[None, start:end], np.ones((1, end), np.int64)]

        prefill, cached = run.errors(feeds, reference.logits[:count], prefix)
        for index, length in enumerate(_SHORTEST):
            logits, _ = run(feeds(0, length))
            prefill = max(prefill, error(logits[0], count + index))
        ids, mask = left_pad([tokens[:short], tokens[:prefix]])
        logits, cache = run([ids, mask])
        padded = max(error(logits[0], short - 1), error(logits[1], prefix - 1))
        if self.cache:
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
            logits, _ = run([tokens[[short, prefix], None], mask], cache)
            padded = max(padded, error(logits[0], short), error(logits[1], prefix))
        return reference.agreement(prefill, cached, padded)


def trial_run(module: nn.Module, config: Any) -> CausalTask:
    """Run the model once on a few tokens to find its cache and its embeddings of positions."""
    vocab_size = getattr(config, "vocab_size", None)
    if not isinstance(vocab_size, int) or not vocab_size:
        # it has at least as many tokens as the smallest embedding has vectors
        embeddings = (part for part in module.modules() if isinstance(part, nn.Embedding))
        vocab_size = min((part.num_embeddings for part in embeddings), default=None)
    ids = trial_ids(vocab_size, [getattr(config, name, None) for name in _SPECIAL])
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
    with _RecordAttention() as record:
        logits = logits_of(module(ids, position_ids=torch.arange(ids.shape[1])[None]))
    cache = tuple(chain.from_iterable(record.layers))
    reason = record.reason or "no causal scaled_dot_product_attention in it"
    if record.reason or not cache:
        return _without_cache(logits, CausalCall("no_cache", position_ids=True), reason)
    call = CausalCall("positions", position_ids=True)
    return CausalTask(logits.shape[-1], None, call, cache=cache)


def _without_cache(logits: Tensor, call: CausalCall, reason: str) -> CausalTask:
    return CausalTask(logits.shape[-1], None, call, no_cache_reason=reason)


def _smallest_position_table(module: nn.Module, tables: dict[str, int]) -> int | None:
    """The fewest positions that a table of positions has."""
    tensors = chain(module.named_parameters(), module.named_buffers())
    lengths = (len(tensor) - tables[name] for name, tensor in tensors if name in tables)
    return min(lengths, default=None)


def _describe_cache(
    cache: Any, attribute_states: dict[str, Tensor]
) -> tuple[tuple[CacheTensor, ...], dict[str, str]]:
    """Describe the tensors of transformers' cache and of states in attributes, by full name.

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
        shapes = [tensor.shape[:3] for tensor in (keys, values) if getattr(tensor, "ndim", 0) == 4]
        if len(shapes) == 2 and shapes[0] == shapes[1] and shapes[0][2] > 0:
            tensors += key_value(str(index), keys, values)
        elif keys is not None or index not in recurrent_layers:
            raise UnfusableError(f"layer {index} keeps neither keys and values nor a state")
    return tuple(sorted(tensors, key=_layer_number)), attributes


def _layer_number(tensor: CacheTensor) -> int:
    return int(tensor.name.partition(".")[0])


class _RecordAttention(AttentionMode):
    """Record the cache of each attention in a trial run, and a reason why none can be used."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[tuple[CacheTensor, ...]] = []
        self.reason: str | None = None

    def attend(self, call: dict[str, Any]) -> Tensor:
        try:
            query, key, value, _ = causal_arguments(call)
            require_fusable(query, key, value)
            self.layers.append(key_value(str(len(self.layers)), key, value))
        except UnfusableError as error:
            self.reason = str(error)
        return attention(**call)
