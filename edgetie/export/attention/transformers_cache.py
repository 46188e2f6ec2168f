"""Caches of transformers models: cache layers, and recurrent states in modules' attributes."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from edgetie.export.attention.group_query_attention import CacheLayer

_PARTS = ("conv_state", "recurrent_state")
_STATE = re.compile(r"(\d+)\.(conv_state|recurrent_state)(?:_(\d+))?")


def recurrent_states(cache: Any) -> dict[str, torch.Tensor]:
    """Collect the states ``(batch, *sizes)`` in a cache: ``3.conv_state``, ``3.conv_state_1``."""
    return {
        f"{index}.{part}" + (f"_{number}" if number else ""): state
        for index, layer in enumerate(cache.layers)
        for part in _PARTS
        for number, state in getattr(layer, f"{part}s", {}).items()
        if state is not None
    }


def attribute_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Collect tensors in attributes that are neither parameters nor buffers, by full name."""
    return {
        f"{path}.{name}": value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    }


def run_with_cache(
    module: torch.nn.Module, config: Any, keyword: str, ids: torch.Tensor
) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """Run a transformers model on ``ids (1, sequence)`` with a cache, which it calls ``keyword``.

    Returns:
        Its output, its cache or ``None``, and recurrent states ``(1, *sizes)`` in attributes by
        full name: tensors that every call replaces by tensors of the same shape.
    """
    first = attribute_tensors(module)
    output = module(input_ids=ids, use_cache=True)
    cache = getattr(output, keyword, None)
    if not _replaced_states(first, attribute_tensors(module)):
        return output, cache, {}
    if cache is None:  # the model uses one, but does not return it
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=config)
        module(input_ids=ids, use_cache=True, **{keyword: cache})
    before = attribute_tensors(module)
    module(input_ids=ids[:, :1], use_cache=True, **{keyword: cache})
    after = attribute_tensors(module)
    for name in after:
        _set_attribute(module, name, first.get(name))
    return output, cache, _replaced_states(before, after)


def _replaced_states(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in after.items()
        if tensor is not before.get(name)
        and (name not in before or before[name].shape == tensor.shape)
        and tensor.ndim > 1
        and tensor.shape[0] == 1
        and tensor.is_floating_point()
    }


def _set_attribute(module: torch.nn.Module, name: str, value: torch.Tensor | None) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(path), attribute, value)


@contextlib.contextmanager
def states_in_attributes(
    module: torch.nn.Module, states: Mapping[str, torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """Set attributes to recurrent states, which are empty afterwards.

    Yields:
        A mapping that holds the attributes' new states when the context ends.
    """
    after: dict[str, torch.Tensor] = {}
    for name, state in states.items():
        _set_attribute(module, name, state)
    try:
        yield after
        tensors = attribute_tensors(module)
        after.update({name: tensors[name] for name in states})
    finally:
        for name in states:
            _set_attribute(module, name, None)


def build_cache(
    layers: Mapping[int, CacheLayer], states: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """Build transformers' cache of layers by number, and of states by :func:`recurrent_states`."""
    from transformers.cache_utils import Cache, DummyLayer

    states = states or {}
    parts = [match for name in states if (match := _STATE.fullmatch(name))]
    recurrent = {int(match[1]) for match in parts}
    types = _cache_layer_types()
    entries: list[Any] = []
    for index in range(max([*layers, *recurrent], default=-1) + 1):
        entries.append(types.get((index in layers, index in recurrent), DummyLayer)())
        if index in layers:
            entries[index].set_layer(layers[index])
    for match, state in zip(parts, states.values(), strict=True):
        entries[int(match[1])].set_state(match[2], int(match[3] or 0), state)
    return Cache(layers=entries)


def _cache_layer_types() -> dict[tuple[bool, bool], Any]:
    """Subclass transformers' cache layers; by whether they hold keys and values, and states."""
    from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

    class Attention(DynamicLayer):  # type: ignore[misc]
        def set_layer(self, layer: CacheLayer) -> None:
            self.layer = layer
            self.keys, self.values = layer.past_key, layer.past_value
            self.dtype, self.device = self.keys.dtype, self.keys.device
            self.is_initialized = True

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any):  # type: ignore[no-untyped-def]
            return self.layer.append(key_states, value_states)

        def get_seq_length(self) -> int:
            return self.layer.past_key.shape[-2]

    class Recurrent(LinearAttentionLayer):  # type: ignore[misc]
        def set_state(self, part: str, number: int, state: torch.Tensor) -> None:
            getattr(self, f"{part}s")[number] = state
            getattr(self, f"is_{part}s_initialized")[number] = True
            self.has_previous_state[number] = True
            self.dtype, self.device = state.dtype, state.device
            if part == "conv_state":
                self.conv_kernel_size[number] = state.shape[-1]

    class Hybrid(Recurrent, Attention):
        def __init__(self) -> None:
            Attention.__init__(self)
            Recurrent.__init__(self)

    return {(True, False): Attention, (False, True): Recurrent, (True, True): Hybrid}
