"""Set the implementations that a transformers model runs while it is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from edgetie.errors import UnfusableError, summarize
from edgetie.sources.source import Source

_EXPERTS = "batched_mm"
"""Every token's experts as one MatMul: the other implementations loop over the experts that tokens
are routed to, or call kernels of torch, and neither is a graph."""

_EXPORTING = "onnx_export"
"""The setting that transformers' own models check in their configurations."""


@contextlib.contextmanager
def attention_implementation(source: Source, name: str | None) -> Iterator[None]:
    """Set the model's attention implementation and restore it; ``None`` leaves it as it is.

    Raises:
        UnfusableError: if the model does not let it be set.
    """
    if name is None:
        yield
        return
    module: Any = source.module
    config = source.config.get_text_config(decoder=True)  # the model's own, if there is no other
    before = config._attn_implementation
    try:
        try:
            module.set_attn_implementation(name)
        except Exception as error:
            raise UnfusableError(
                f"its attention cannot be replaced ({summarize(error)})"
            ) from error
        if config._attn_implementation != name:
            raise UnfusableError("its attention cannot be replaced")
        yield
    finally:
        module.set_attn_implementation(before)


@contextlib.contextmanager
def experts_implementation(source: Source) -> Iterator[bool]:
    """Set an experts implementation that can be traced, if the model has experts, and restore it.

    Yields:
        Whether it has.
    """
    module: Any = source.module
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
    """Set in the configurations that the model is exported: some models then run code that can be
    traced, and otherwise read memory in strides.
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
