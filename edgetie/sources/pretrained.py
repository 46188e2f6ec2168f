"""Load models in transformers' format: a directory, or an id on the hub."""

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgetie.bundle.model_config import read_json
from edgetie.bundle.names import (
    ADAPTER,
    IMAGE_LM,
    IMAGE_TO_TEXT,
    MANIFEST,
    PREPROCESSOR,
    PROCESSOR,
    SPEECH,
)
from edgetie.errors import SourceError, summarize
from edgetie.runtime.text.tokenizer import merge_damage
from edgetie.sources.checkpoint import (
    find_renames,
    is_tied_by,
    quantization_method,
    quantized_message,
    refuse_quantized,
    require_weights,
    tie_rounded_head,
    untied,
)
from edgetie.sources.source import Source
from edgetie.sources.task_detection import TASKS, auto_class, other_class, task_of, tasks_of

logger = logging.getLogger(__name__)

_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZERS = ("tokenizer.json", _TOKENIZER_CONFIG, "tokenizer.model", "vocab.json")
_PREPROCESSORS = (PREPROCESSOR, PROCESSOR)
_AUDIO_TASKS = (SPEECH, "seq2seq-lm")  # transformers lists some audio models with text models
_SIDES = ("height", "width")
_IMAGE_TASKS = (IMAGE_LM, IMAGE_TO_TEXT)
_SETTINGS = ("config.json", "generation_config.json", "tokenizer.json", _TOKENIZER_CONFIG)
_HUB_SECONDS = 10.0
_MAX_LAYERS = 10_000  # many times those of any model
_MISSING_PACKAGE = re.compile(r"requires the (\S+) library|[Rr]un `pip install ([\w.-]+)")
_HTTP_REFUSED = (401, 403, 404)  # not for everyone, or nothing of that name
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def load_pretrained(text: str, task: str, trust_remote_code: bool, allow_pickle: bool) -> Source:
    """Load a language model with transformers.

    Raises:
        SourceError: if it cannot be loaded, lacks weights, or has its own code or pickled weights
            and the permission for them was not given.
    """
    from transformers import AutoConfig, PretrainedConfig

    directory = Path(text)
    unreachable = None
    if directory.is_dir():
        check_directory(directory, trust_remote_code, allow_pickle)
    else:
        unreachable = _why_unreachable(text)
    options = {"trust_remote_code": trust_remote_code, "local_files_only": unreachable is not None}
    if _cached_file(text, ADAPTER, options) and find_spec("peft") is None:
        raise SourceError(  # without peft, transformers ignores the adapter
            f"{text}: has an adapter ({ADAPTER}), which needs the package peft to be "
            "loaded; install it, or merge the adapter into the weights"
        )
    config = method = None
    try:
        with quiet_transformers():
            _require_possible_layers(text, PretrainedConfig.get_config_dict(text, **options)[0])
            config = AutoConfig.from_pretrained(text, **options)
            method = quantization_method(getattr(config, "quantization_config", None))
            task = task_of(config) if task == "auto" else task
            settings = {"use_safetensors": None if allow_pickle else True, **options}
            module, loading = _load_module(text, task, config, settings)
    except SourceError:
        raise
    except Exception as error:
        if unreachable is not None:
            raise SourceError(
                f"{text}: not a directory, and the hub cannot be reached ({unreachable}); "
                "check the network, or download the model and name its directory"
            ) from error
        if method is not None:
            raise SourceError(quantized_message(text, method)) from error
        if config is not None and task not in (tasks := tasks_of(config)):
            raise SourceError(_no_class_message(text, task, config.model_type, tasks)) from error
        if package := _missing_package(error):
            raise SourceError(
                f"{text}: needs the package {package} to be loaded; pip install {package}"
            ) from error
        raise SourceError(f"{text}: cannot be loaded ({summarize(error)})") from error
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    require_weights(text, loading, vocab_size, other_class(config))
    tie_rounded_head(module)
    return Source(
        kind="transformers",
        name=directory.resolve().name if directory.is_dir() else text,
        module=module.eval(),
        config=module.config,  # a copy of ``config``; its attention implementation is the one used
        save_extras=partial(_save_extras, text, config, task, options),
        task=task,
        unused=_unused_weights(text, module, loading),
        image_size=_image_size(text, options) if task in _IMAGE_TASKS else None,
    )


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
    text: str, task: str, config: Any, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Load the weights in fp32, without the prefixes of wrappers.

    Returns:
        The module, and what transformers reports about it.
    """
    import torch

    def load(config: Any, renames: dict[str, str] | None = None) -> tuple[Any, dict[str, Any]]:
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
        SourceError: if its files are damaged, need a permission that was not given, or hold
            weights that cannot be read.
    """
    _refuse_custom_code(directory, trust_remote_code)
    _refuse_pickle(directory, allow_pickle)
    settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    refuse_quantized(str(directory), settings.get("quantization_config"))


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


def _save_extras(text: str, config: Any, task: str, options: dict[str, Any], target: Path) -> None:
    """Write the files that a bundle needs besides its graphs.

    Raises:
        SourceError: if a setting is not text.
    """
    try:
        _save_config_and_tokenizer(text, config, target, options)
        if task in _AUDIO_TASKS:
            _save_feature_extractor(text, target, options)
    except UnicodeEncodeError as error:  # JSON can name halves of a character
        raise SourceError(
            f"{text}: its configuration or its tokenizer has text that is not Unicode "
            f"({error.object[error.start]!a}); repair its JSON files"
        ) from error
    if task in _IMAGE_TASKS:
        for path in _preprocessors(text, options):
            shutil.copyfile(path, target / path.name)


def _save_config_and_tokenizer(
    text: str, config: Any, target: Path, options: dict[str, Any]
) -> None:
    """Write configuration, generation configuration and tokenizer, if there is one."""
    from transformers import AutoTokenizer, GenerationConfig

    config.save_pretrained(target)
    with quiet_transformers():
        try:
            local = options["local_files_only"]
            generation = GenerationConfig.from_pretrained(text, local_files_only=local)
        except OSError:
            logger.debug("%s: no generation configuration", text, exc_info=True)
            generation = GenerationConfig.from_model_config(config)
        generation.save_pretrained(target)
    if any(_cached_file(text, name, options) for name in _TOKENIZERS):
        save_tokenizer(_load_part(AutoTokenizer, "tokenizer", text, options), target)


def _save_feature_extractor(text: str, target: Path, options: dict[str, Any]) -> None:
    """Write how audio becomes features, if the model has such files."""
    files = _preprocessors(text, options)
    if not files:
        return
    from transformers import AutoFeatureExtractor

    _load_part(AutoFeatureExtractor, "feature extractor", text, options).save_pretrained(target)
    if files[-1].name == PROCESSOR:  # has the prompt for audio
        shutil.copyfile(files[-1], target / PROCESSOR)


def _preprocessors(text: str, options: dict[str, Any]) -> list[Path]:
    """The files that say how audio or images become inputs."""
    return [path for name in _PREPROCESSORS if (path := _cached_file(text, name, options))]


def _image_size(text: str, options: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width of all images that the processor makes; ``None`` if they differ."""
    for path in _preprocessors(text, options):
        settings = read_json(path)
        settings = settings.get("image_processor", settings)
        if not isinstance(settings, dict):
            raise SourceError(f"{path}: image_processor is not an object; download the file again")
        size = settings.get("crop_size" if settings.get("do_center_crop") else "size")
        height, width = (size.get(n) for n in _SIDES) if isinstance(size, dict) else (size, size)
        if isinstance(height, int) and isinstance(width, int):
            return height, width
    return None


def _load_part(auto_class: Any, name: str, text: str, options: dict[str, Any]) -> Any:
    try:
        with quiet_transformers():
            return auto_class.from_pretrained(text, **options)
    except Exception as error:
        raise SourceError(
            f"{text}: its {name} cannot be loaded ({summarize(error)}); "
            "repair its files, or remove them to export without one"
        ) from error


def _cached_file(text: str, name: str, options: dict[str, Any]) -> Path | None:
    """A file of a model, or ``None`` if it has no such file."""
    from transformers.utils import cached_file

    try:
        path = cached_file(text, name, local_files_only=options["local_files_only"])
    except OSError:
        logger.debug("%s: no file %s", text, name, exc_info=True)
        return None
    return None if path is None else Path(path)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' progress bars and reports: errors are raised anyway."""
    from transformers.utils import logging

    had_bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


def save_tokenizer(tokenizer: Any, target: Path) -> None:
    """Save a tokenizer so that transformers 4 and transformers.js can read it too, compactly.

    Its chat template is in ``tokenizer_config.json``, and its class has a name that all recognize.
    """
    tokenizer.save_pretrained(target, save_jinja_files=False)
    path = target / _TOKENIZER_CONFIG
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("tokenizer_class") == "TokenizersBackend":
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    path = target / "tokenizer.json"
    if path.is_file():
        data = json.loads(path.read_text(encoding="utf-8"))
        compact = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        path.write_text(compact, encoding="utf-8")
