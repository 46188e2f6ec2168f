"""Load modules that a Python function builds: ``package.module:function``."""

import importlib
import sys
from pathlib import Path
from typing import Any

from edgetie.errors import SourceError, summarize
from edgetie.sources.source import Source


def load_factory(text: str, task: str) -> Source:
    """Call ``package.module:function`` and load the module it returns.

    The current directory is importable, as with ``python -m``.

    Raises:
        SourceError: if it cannot be imported or called, or does not return an ``nn.Module``.
    """
    import torch

    module_name, function_name = text.split(":")
    working_directory = str(Path.cwd())
    if working_directory not in sys.path:
        sys.path.insert(0, working_directory)
    try:
        module = getattr(importlib.import_module(module_name), function_name)()
    except (Exception, SystemExit) as error:
        raise SourceError(
            f"{text}: calling it failed ({type(error).__name__}: {summarize(error)}); "
            "it must be importable from here and take no arguments"
        ) from error
    module = getattr(module, "_orig_mod", module)  # unwrap torch.compile
    if not isinstance(module, torch.nn.Module):
        raise SourceError(f"{text}: returned {type(module).__name__}, not a torch.nn.Module")
    if not any(True for _ in module.parameters()):
        raise SourceError(f"{text}: returned a module without parameters, so it is not a model")
    config: Any = getattr(module, "config", None)

    def save_extras(target: Path) -> None:
        if hasattr(config, "save_pretrained"):
            config.save_pretrained(target)

    return Source("factory", text, module.eval().float(), config, save_extras, task)
