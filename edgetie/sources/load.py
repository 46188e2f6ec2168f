"""What can be exported: a transformers directory or hub id, a GGUF file, a Python factory.

:func:`load_source` turns the text a user types into a :class:`Source`: a ``torch.nn.Module`` in
evaluation mode, fp32, on the CPU, with what else belongs beside the exported model (configuration,
tokenizer). torch and transformers are imported only here and below ``edgetie.export``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetie.bundle.bundle import require_utf8
from edgetie.errors import SourceError
from edgetie.sources.task_detection import TASKS, task_of

if TYPE_CHECKING:
    import torch

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class Source:
    """A model ready to be traced.

    Attributes:
        kind: ``transformers``, ``gguf`` or ``factory``.
        name: what the user called it, without the path to it.
        module: the model, in evaluation mode, fp32.
        config: its transformers configuration; ``None`` for a module that has none.
        save_extras: writes configuration and tokenizer files into a directory.
        unused: names of weights in its files that the model does not have.
        task: what it does, one of :data:`TASKS`; ``auto`` is decided by
            the class of the module, or by its configuration.
    """

    kind: str
    name: str
    module: torch.nn.Module
    config: Any
    save_extras: Callable[[Path], None]
    task: str = "auto"
    unused: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.task == "auto":
            self.task = task_of(self.config, [self.architecture])

    @property
    def architecture(self) -> str:
        return type(self.module).__name__


def load_source(
    text: str, *, task: str = "auto", trust_remote_code: bool = False, allow_pickle: bool = False
) -> Source:
    """Load the model that ``text`` names.

    Args:
        text: a directory with ``config.json``, a ``.gguf`` file (or a directory with one), a hub
            id ``organisation/name``, or ``package.module:function``, a callable without arguments
            that returns an ``nn.Module``.
        task: what the model does, one of :data:`TASKS`; ``auto`` decides
            from its configuration.
        trust_remote_code: allow a model directory to run Python code of its own.
        allow_pickle: allow weights in PyTorch's pickle format, which can run code when loaded.

    Raises:
        SourceError: if there is no such model, or loading it needs a permission not given.
    """
    require_export_packages()
    if task != "auto" and task not in TASKS:
        raise SourceError(f"task {task!r}: unknown; one of auto, {', '.join(TASKS)}")
    if not text:
        raise SourceError("no model is named; name a directory, a .gguf file or module:function")
    path = Path(text)
    require_utf8(path)
    if path.is_file():
        if path.suffix == ".gguf":
            from edgetie.sources.gguf import load_gguf

            return _of_task(load_gguf(path), task)
        if path.suffix == ".onnx":
            raise SourceError(f"{text}: is ONNX already; use `edgetie quantize` or `inspect` on it")
        raise SourceError(f"{text}: not a model (expected a directory, .gguf or module:function)")
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        others = [each for kind in _WEIGHTS for each in path.glob(kind)]
        if ggufs and not others:
            if len(ggufs) > 1:
                names = ", ".join(file.name for file in ggufs)
                raise SourceError(f"{text}: holds several .gguf files; name one of them: {names}")
            from edgetie.sources.gguf import load_gguf

            return _of_task(load_gguf(ggufs[0]), task)
        if not (path / "config.json").is_file():
            raise SourceError(f"{text}: no config.json in this directory, so it is no model")
        from edgetie.sources.pretrained import load_pretrained

        return load_pretrained(text, task, trust_remote_code, allow_pickle)
    if _FACTORY.fullmatch(text):
        from edgetie.sources.factory import load_factory

        return load_factory(text, task)
    if _HUB_ID.fullmatch(text):
        from edgetie.sources.pretrained import load_pretrained

        return load_pretrained(text, task, trust_remote_code, allow_pickle)
    raise SourceError(
        f"{text}: no such file or directory; name a model's directory, a hub id, a .gguf file or "
        "module:function"
    )


_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


def _of_task(source: Source, task: str) -> Source:
    if task not in ("auto", source.task):
        raise SourceError(f"{source.name}: is a model for {source.task}, not {task}")
    return source


def require_export_packages() -> None:
    """Check that what exporting needs is installed.

    Raises:
        SourceError: naming what is missing and how to get it.
    """
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers", "onnxscript") if find_spec(name) is None]
    if missing:
        raise SourceError(
            f"exporting needs {', '.join(missing)}; install it with: pip install 'edgetie[export]'"
        )
