"""Load the model that a text names: a directory, a hub id, a GGUF file or a Python factory."""

import json
import logging
import re
from importlib.util import find_spec
from pathlib import Path

from edgetie.bundle.bundle import require_utf8
from edgetie.bundle.names import ADAPTER
from edgetie.errors import SourceError
from edgetie.sources.gguf import load_gguf, require_gguf
from edgetie.sources.pretrained import check_directory, load_pretrained
from edgetie.sources.source import Source
from edgetie.sources.task_detection import TASKS

logger = logging.getLogger(__name__)

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


def load_source(
    text: str,
    *,
    task: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    dequantize: bool = False,
) -> Source:
    """Load a model with its configuration and tokenizer: fp32, in evaluation mode, on the CPU.

    Of a quantized checkpoint, the source has the quantized weights too.

    Args:
        text: a directory with ``config.json``, a ``.gguf`` file (or a directory with one), a hub
            id, or ``package.module:function``, which takes nothing and returns an ``nn.Module``.
        task: what the model does, one of :data:`TASKS`; ``auto`` detects it.
        trust_remote_code: allow a model directory to run its own Python code.
        allow_pickle: allow weights in PyTorch's pickle format, which can run code when loaded.
        dequantize: leave quantized weights out.

    Raises:
        SourceError: if there is no such model, loading it needs a permission not given, or
            quantized weights cannot be kept as they are.
    """
    kind, path = check_source(
        text, task=task, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    if kind == "gguf":
        source = load_gguf(path, dequantize=dequantize)
        if task not in ("auto", source.task):
            raise SourceError(f"{source.name}: is a model for {source.task}, not {task}")
        return source
    if kind == "factory":
        from edgetie.sources.factory import load_factory

        return load_factory(text, task)
    return load_pretrained(
        text,
        task,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        dequantize=dequantize,
    )


def check_source(
    text: str, *, task: str, trust_remote_code: bool, allow_pickle: bool
) -> tuple[str, Path]:
    """Refuse what cannot be loaded, without importing torch or asking the hub.

    Takes what :func:`load_source` takes and returns what :func:`locate_source` returns.

    Raises:
        SourceError: if there is no such model, or loading it needs a permission not given.
    """
    kind, path = locate_source(text)
    if task != "auto" and task not in TASKS:
        raise SourceError(f"unknown; one of auto, {', '.join(TASKS)}", parameter="task", value=task)
    if kind == "gguf":
        require_gguf(path)
    elif kind == "transformers" and path.is_dir():
        check_directory(path, trust_remote_code, allow_pickle)
    return kind, path


def locate_source(text: str) -> tuple[str, Path]:
    """Find out which kind of model a text names, without importing torch or asking the hub.

    Returns:
        ``gguf``, ``factory`` or ``transformers``, and the path of the model, if it is a file.

    Raises:
        SourceError: if it cannot be a model, or packages that exporting needs are missing.
    """
    require_export_packages()
    if not text:
        raise SourceError("no model is named; name a directory, a .gguf file or module:function")
    path = Path(text)
    require_utf8(path)
    if path.is_file():
        if path.suffix == ".gguf":
            return "gguf", path
        if path.suffix == ".onnx":
            raise SourceError(f"{text}: is an ONNX file already; quantize or inspect it as it is")
        raise SourceError(f"{text}: not a model (expected a directory, .gguf or module:function)")
    if path.is_dir():
        return _locate_in_directory(path)
    for kind, pattern in (("factory", _FACTORY), ("transformers", _HUB_ID)):
        if pattern.fullmatch(text):
            return kind, path
    raise SourceError(
        f"{text}: no such file or directory; name a model's directory, a hub id with its owner "
        "(owner/name), a .gguf file or module:function"
    )


def _locate_in_directory(path: Path) -> tuple[str, Path]:
    ggufs = sorted(path.glob("*.gguf"))
    if ggufs and not any(True for pattern in _WEIGHTS for _ in path.glob(pattern)):
        if len(ggufs) > 1:
            names = ", ".join(file.name for file in ggufs)
            raise SourceError(f"{path}: has several .gguf files; name one of them: {names}")
        return "gguf", ggufs[0]
    if (path / "config.json").is_file():
        return "transformers", path
    if (path / ADAPTER).is_file():
        raise SourceError(
            f"{path}: is an adapter of {_base_model(path)}, not a model; export that model with "
            "this as one of its adapters, or merge it (peft's merge_and_unload) and export the "
            "result"
        )
    raise SourceError(f"{path}: no config.json in this directory, so it is not a model")


def _base_model(path: Path) -> str:
    """The name of the model that an adapter belongs to."""
    try:
        return str(json.loads((path / ADAPTER).read_bytes())["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError):
        logger.debug("%s: no base model in %s", path, ADAPTER, exc_info=True)
        return "another model"


def require_export_packages() -> None:
    """Raise :class:`SourceError` if packages that exporting needs are not installed."""
    missing = [name for name in ("torch", "transformers", "onnxscript") if find_spec(name) is None]
    if missing:
        raise SourceError(
            f"exporting needs {', '.join(missing)}; in the checkout of edgetie run: "
            'pip install ".[export]"'
        )
