"""Which of transformers' implementations a model runs while it is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from edgetie.errors import UnfusableError, summarize
from edgetie.sources.source import Source

_EXPERTS = "batched_mm"
"""Every token's experts as one matrix product: the others loop over the experts that tokens happen
to choose, or call kernels of torch's own, and neither is a graph."""

_EXPORTING = "onnx_export"
"""What transformers' own models look for in their configurations."""


@contextlib.contextmanager
def attention_implementation(source: Source, name: str) -> Iterator[None]:
    """Choose the attention implementation on the model's own configuration, and restore it.

    Raises:
        UnfusableError: if the model does not let it be chosen.
    """
    config = source.config.get_text_config(decoder=True)  # its own, where there is no other
    before = config._attn_implementation
    try:
        try:
            _module(source).set_attn_implementation(name)
        except Exception as error:
            raise UnfusableError(
                f"its attention cannot be replaced ({summarize(error)})"
            ) from error
        if config._attn_implementation != name:
            raise UnfusableError("its attention cannot be replaced")
        yield
    finally:
        _module(source).set_attn_implementation(before)


@contextlib.contextmanager
def experts_implementation(source: Source) -> Iterator[bool]:
    """Choose experts that can be traced, where the model has any, and restore what was chosen.

    Yields:
        Whether it has.
    """
    module = _module(source)
    names = ("get_experts_implementation", "set_experts_implementation")
    has_experts = any(hasattr(part, "_apply_gate") for part in module.modules())
    if not has_experts or not all(hasattr(module, name) for name in names):
        yield False
        return
    before = module.get_experts_implementation()
    module.set_experts_implementation(_EXPERTS)
    try:
        yield True
    finally:
        module.set_experts_implementation(before)


@contextlib.contextmanager
def announced_export(source: Source) -> Iterator[None]:
    """Say in the configurations that the model is exported: some models then run code that is a
    graph, where otherwise they read memory in strides.
    """
    parts = (getattr(module, "config", None) for module in source.module.modules())
    configs = {id(config): config for config in parts if hasattr(config, "_attn_implementation")}
    before = [(config, getattr(config, _EXPORTING, None)) for config in configs.values()]
    for config in configs.values():
        setattr(config, _EXPORTING, True)
    try:
        yield
    finally:
        for config, value in before:
            if value is None:
                delattr(config, _EXPORTING)
            else:
                setattr(config, _EXPORTING, value)


def _module(source: Source) -> Any:
    """The module as what it is: a transformers model, whose methods ``nn.Module`` does not know."""
    return source.module
