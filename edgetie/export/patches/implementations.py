"""Set the implementations that a transformers model runs while it is traced."""

import contextlib
from collections.abc import Iterator
from typing import Any

from edgetie.errors import UnfusableError, summarize
from edgetie.sources.patching import set_attributes
from edgetie.sources.source import Source

_EXPERTS = "batched_mm"  # others loop over the experts in use, or call kernels of torch
_EXPORTING = "onnx_export"  # the setting that transformers' own models check


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
    with contextlib.ExitStack() as stack:
        stack.callback(module.set_attn_implementation, before)
        message = "its attention cannot be replaced"
        try:
            module.set_attn_implementation(name)
        except Exception as error:
            raise UnfusableError(f"{message} ({summarize(error)})") from error
        if config._attn_implementation != name:
            raise UnfusableError(message)
        yield


@contextlib.contextmanager
def experts_implementation(source: Source) -> Iterator[bool]:
    """Set an experts implementation that can be traced and restore it; yields if there is one."""
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


def announced_export(source: Source) -> contextlib.AbstractContextManager[None]:
    """Set in the configurations that the model is exported: some then run code to be traced."""
    parts = (getattr(module, "config", None) for module in source.module.modules())
    configs = {id(config): config for config in parts if hasattr(config, "_attn_implementation")}
    return set_attributes((config, _EXPORTING, True) for config in configs.values())
