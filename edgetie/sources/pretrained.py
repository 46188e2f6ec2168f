"""Load models in transformers' format: a directory, or an id on the hub."""

import contextlib
import json
import logging
import re
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgetie.bundle.names import ADAPTER, MANIFEST
from edgetie.errors import SourceError, summarize
from edgetie.runtime.text.tokenizer import merge_damage
from edgetie.sources.checkpoint import (
    find_renames,
    is_tied_by,
    quantization_method,
    quantized_message,
    require_weights,
    tie_rounded_head,
    untied,
)
from edgetie.sources.extras import cached_file, quiet_transformers, read_image_size, save_extras
from edgetie.sources.quantized.loader import READ_METHODS, QuantizedLoader
from edgetie.sources.source import Source
from edgetie.sources.task_detection import TASKS, auto_class, other_class, task_of, tasks_of

logger = logging.getLogger(__name__)

_SETTINGS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_HUB_SECONDS = 10.0
_MAX_LAYERS = 10_000  # many times those of any model
_MISSING_PACKAGE = re.compile(r"requires the (\S+) library|[Rr]un `pip install ([\w.-]+)")
_HTTP_REFUSED = (401, 403, 404)  # not for everyone, or nothing of that name
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def load_pretrained(
    text: str, task: str, *, trust_remote_code: bool, allow_pickle: bool, dequantize: bool = False
) -> Source:
    """Load a language model with transformers, and its quantized weights unless ``dequantize``.

    Raises:
        SourceError: if it cannot be loaded, lacks weights, has its own code or pickled weights and
            the permission for them was not given, or a quantized weight cannot be kept as it is.
    """
    from transformers import AutoConfig, PretrainedConfig

    directory = Path(text)
    unreachable = None
    if directory.is_dir():
        check_directory(directory, trust_remote_code, allow_pickle)
    else:
        unreachable = _why_unreachable(text)
    options = {"trust_remote_code": trust_remote_code, "local_files_only": unreachable is not None}
    if cached_file(text, ADAPTER, options) and find_spec("peft") is None:
        raise SourceError(  # without peft, transformers ignores the adapter
            f"{text}: has an adapter ({ADAPTER}), which needs the package peft to be "
            "loaded; install it, or merge the adapter into the weights"
        )
    config = method = loader = None
    try:
        with quiet_transformers():
            _require_possible_layers(text, PretrainedConfig.get_config_dict(text, **options)[0])
            config = AutoConfig.from_pretrained(text, **options)
            quantization = getattr(config, "quantization_config", None)
            method = quantization_method(quantization)
            if quantization is not None and method in READ_METHODS:
                loader = QuantizedLoader(text, method, quantization, dequantize)
                del config.quantization_config
            task = task_of(config) if task == "auto" else task
            settings = {"use_safetensors": None if allow_pickle else True, **options}
            module, loading = _load_module(text, task, config, settings, loader)
    except SourceError:
        raise
    except Exception as error:
        raise _load_error(text, task, config, method, unreachable, error) from error
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    require_weights(text, loading, vocab_size, other_class(config))
    tie_rounded_head(module)
    if method is not None and loader is None and not dequantize:
        raise SourceError(
            f"{text}: its weights are quantized by {method} and cannot be kept so; export them in "
            "floating point, and quantize that",
            advice={"dequantize": True},
        )
    return Source(
        kind="transformers",
        name=directory.resolve().name if directory.is_dir() else text,
        module=module.eval(),
        config=module.config,  # a copy of ``config``; its attention implementation is the one used
        save_extras=partial(save_extras, text, config, task, options),
        task=task,
        unused=_unused_weights(text, module, loading),
        image_size=read_image_size(text, task, options),
        quantized={} if loader is None else loader.quantized(module),
    )


def _load_error(
    text: str,
    task: str,
    config: Any,
    method: str | None,
    unreachable: str | None,
    error: Exception,
) -> SourceError:
    """Say why transformers did not load a model, and what to do.

    Args:
        text: the model's name.
        task: what it was loaded for.
        config: its configuration; ``None`` if that cannot be loaded either.
        method: the method that quantized its weights, if one did.
        unreachable: why the hub was not asked for it, if it was not.
        error: what transformers raised.
    """
    if unreachable is not None:
        return SourceError(
            f"{text}: not a directory, and the hub cannot be reached ({unreachable}); "
            "check the network, or download the model and name its directory"
        )
    if method is not None:
        return SourceError(quantized_message(text, method))
    if config is not None and task not in (tasks := tasks_of(config)):
        return SourceError(_no_class_message(text, task, config.model_type, tasks))
    if package := _missing_package(error):
        return SourceError(
            f"{text}: needs the package {package} to be loaded; pip install {package}"
        )
    return SourceError(f"{text}: cannot be loaded ({summarize(error)})")


def _no_class_message(text: str, task: str, model_type: str, tasks: list[str]) -> str:
    """Say for which tasks transformers loads a model, if not for ``task``."""
    if not tasks:
        return (
            f"{text}: a model of type {model_type} is not a language model that transformers can "
            f"load; edgetie exports those for {', '.join(TASKS)}"
        )
    return (
        f"{text}: a model of type {model_type} cannot be loaded for {task}, only for "
        f"{' or '.join(tasks)}; name that task, or none"
    )


def _missing_package(error: Exception) -> str | None:
    """Name the package that transformers, or a model's own code, lacks."""
    if not isinstance(error, ImportError):
        return None
    match = _MISSING_PACKAGE.search(str(error))
    return (match[1] or match[2]).lower() if match else error.name


def _require_possible_layers(text: str, settings: Mapping[str, Any]) -> None:
    """Refuse numbers of layers that no model has: transformers would make them all."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            _require_possible_layers(text, value)
        elif name.endswith(("layer", "layers")) and isinstance(value, int) and value > _MAX_LAYERS:
            raise SourceError(
                f"{text}: its configuration has {name} {value}, which no model has; download it "
                "again"
            )


def _load_module(
    text: str, task: str, config: Any, options: dict[str, Any], loader: QuantizedLoader | None
) -> tuple[Any, dict[str, Any]]:
    """Load the weights in fp32, without the prefixes of wrappers.

    Returns:
        The module, and what transformers reports about it.
    """
    import torch

    def load(config: Any, renames: dict[str, str] | None = None) -> tuple[Any, dict[str, Any]]:
        with contextlib.nullcontext() if loader is None else loader.replace_weights():
            module, loading = auto_class(task).from_pretrained(
                text,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported by require_weights
                output_loading_info=True,
                key_mapping=renames,
                **options,
            )
        return module, loading

    try:
        module, loading = load(config)
    except Exception:
        if not is_tied_by(config):
            raise
        # transformers fails to compare a tied head of another size than the table's
        module, loading = load(untied(config))
        if not loading["mismatched_keys"]:
            raise
    renames = find_renames(loading)
    if renames:
        del module
        module, loading = load(config, renames)
    return module, loading


def _unused_weights(text: str, module: Any, loading: dict[str, Any]) -> list[str]:
    """Names of weights in the files that the model does not have, unless of further layers."""
    unused = sorted(loading["unexpected_keys"])
    patterns = {_NUMBER.sub("", name) for name in module.state_dict()}
    more = next((name for name in unused if _NUMBER.sub("", name) in patterns), None)
    if more is not None:
        raise SourceError(
            f"{text}: its files have weights of more layers than its configuration says ({more}); "
            "repair config.json"
        )
    return unused


def _why_unreachable(text: str) -> str | None:
    """Ask the hub for a model once, as transformers asks for each file; why it did not answer.

    Raises:
        SourceError: if the hub has no such model, or does not give it to everyone.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().model_info(text, timeout=_HUB_SECONDS)
    except Exception as error:  # without an answer, of a class that depends on proxies
        status = getattr(getattr(error, "response", None), "status_code", None)
        is_answer = isinstance(error, HfHubHTTPError | HFValidationError)
        if is_answer and (status is None or status in _HTTP_REFUSED):
            raise SourceError(
                f"{text}: neither a directory nor a model on the hub that you may load "
                f"({summarize(error)})"
            ) from error
        logger.debug("%s: the hub cannot be reached", text, exc_info=True)
        return summarize(error)  # an earlier download may be in the cache
    return None


def check_directory(directory: Path, trust_remote_code: bool, allow_pickle: bool) -> None:
    """Check a model's directory without importing torch.

    Raises:
        SourceError: if its files are damaged or need a permission that was not given.
    """
    _refuse_custom_code(directory, trust_remote_code)
    _refuse_pickle(directory, allow_pickle)


def _refuse_custom_code(directory: Path, allowed: bool) -> None:
    for path in filter(Path.is_file, (directory / name for name in _SETTINGS)):
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}: not valid JSON ({error}); download it again") from error
        if not isinstance(settings, dict):
            raise SourceError(f"{path}: not a JSON object; download it again")
        if (damage := merge_damage(settings)) is not None:
            raise SourceError(f"{path}: {damage}; download it again")
        if settings.get("auto_map") and not allowed:
            raise SourceError(
                f"{directory}: the model has its own Python code (auto_map in {path.name}); "
                "read it, then allow it",
                advice={"trust_remote_code": True},
            )


def _refuse_pickle(directory: Path, allowed: bool) -> None:
    if any(directory.glob("*.safetensors")):
        return
    pickles = sorted(path for kind in ("bin", "pt", "pth") for path in directory.glob(f"*.{kind}"))
    if not pickles and (directory / MANIFEST).is_file():
        raise SourceError(f"{directory}: is a bundle already; export the model it was made from")
    if not pickles:
        raise SourceError(f"{directory}: no weights (*.safetensors) in this directory")
    if not allowed:
        raise SourceError(
            f"{pickles[0]}: pickled weights can run code when loaded; "
            "convert them to safetensors, or allow them",
            advice={"allow_pickle": True},
        )
