"""Where a transformers model keeps what it remembers: cache layers, or modules' attributes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from edgetie.export.attention.interface import CacheLayer

_PARTS = ("conv_state", "recurrent_state")
_STATE = re.compile(r"(\d+)\.(conv_state|recurrent_state)(?:_(\d+))?")


def cache_states(cache: Any) -> dict[str, torch.Tensor]:
    """The states ``(batch, *sizes)`` in a cache, as ``3.conv_state``; a second one of a kind in the
    same layer has a number.
    """
    return {
        f"{index}.{part}" + (f"_{number}" if number else ""): state
        for index, layer in enumerate(cache.layers)
        for part in _PARTS
        for number, state in getattr(layer, f"{part}s", {}).items()
        if state is not None
    }


def attribute_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors in attributes of modules that are neither parameters nor buffers, by full name."""
    return {
        f"{path}.{name}": value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    }


def run_cached(
    module: torch.nn.Module, config: Any, keyword: str, ids: torch.Tensor
) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """Run a transformers model with a cache.

    Args:
        module: the model.
        config: its configuration.
        keyword: what it calls its cache.
        ids: ``(1, sequence)``.

    Returns:
        Its output; the cache, or ``None``; and the states ``(1, *sizes)`` that it keeps in
        attributes, by full name: tensors that every call replaces by others of one shape.
    """
    first = attribute_tensors(module)
    output = module(input_ids=ids, use_cache=True)
    cache = getattr(output, keyword, None)
    if not _replaced(first, attribute_tensors(module)):
        return output, cache, {}
    if cache is None:  # one that is used, but not returned
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=config)
        module(input_ids=ids, use_cache=True, **{keyword: cache})
    before = attribute_tensors(module)
    module(input_ids=ids[:, :1], use_cache=True, **{keyword: cache})
    after = attribute_tensors(module)
    for name in after:
        set_attribute(module, name, first.get(name))
    return output, cache, _replaced(before, after)


def _replaced(
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


def set_attribute(module: torch.nn.Module, name: str, value: torch.Tensor | None) -> None:
    """Set the attribute of that full name."""
    path, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(path), attribute, value)


@contextlib.contextmanager
def attributes_held(
    module: torch.nn.Module, states: Mapping[str, torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """Put states into attributes; yields a mapping that holds what has become of them behind.

    The attributes are empty afterwards, as they are in a model that has not been called.
    """
    after: dict[str, torch.Tensor] = {}
    for name, state in states.items():
        set_attribute(module, name, state)
    try:
        yield after
        found = attribute_tensors(module)
        after.update({name: found[name] for name in states})
    finally:
        for name in states:
            set_attribute(module, name, None)


def cache_of(
    layers: Mapping[int, CacheLayer], states: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """transformers' cache object.

    Args:
        layers: keys and values, by number of layer.
        states: the states of recurrent layers, named as by :func:`cache_states`.
    """
    from transformers.cache_utils import Cache, DummyLayer, DynamicLayer, LinearAttentionLayer

    class Attention(DynamicLayer):  # type: ignore[misc]
        def hold(self, layer: CacheLayer) -> None:
            self.layer = layer
            self.keys, self.values = layer.past_key, layer.past_value
            self.dtype, self.device = self.keys.dtype, self.keys.device
            self.is_initialized = True

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any):  # type: ignore[no-untyped-def]
            return self.layer.append(key_states, value_states)

        def get_seq_length(self) -> int:
            return self.layer.past_key.shape[-2]

    class State(LinearAttentionLayer):  # type: ignore[misc]
        def put(self, part: str, number: int, state: torch.Tensor) -> None:
            getattr(self, f"{part}s")[number] = state
            getattr(self, f"is_{part}s_initialized")[number] = True
            self.has_previous_state[number] = True
            self.dtype, self.device = state.dtype, state.device
            if part == "conv_state":
                self.conv_kernel_size[number] = state.shape[-1]

    class Both(State, Attention):
        def __init__(self) -> None:
            Attention.__init__(self)
            State.__init__(self)

    keys = [_STATE.fullmatch(name) for name in states or {}]
    recurrent = {int(key[1]) for key in keys if key is not None}
    made: list[Any] = []
    for index in range(max([*layers, *recurrent], default=-1) + 1):
        kind = {(1, 0): Attention, (0, 1): State, (1, 1): Both}.get(
            (index in layers, index in recurrent), DummyLayer
        )
        made.append(kind())
        if index in layers:
            made[index].hold(layers[index])
    for key, state in zip(keys, (states or {}).values(), strict=True):
        assert key is not None
        made[int(key[1])].put(key[2], int(key[3] or 0), state)
    return Cache(layers=made)
