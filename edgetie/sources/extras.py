"""Files of a model besides its weights: configuration, tokenizer and how inputs are made."""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgetie.bundle.model_config import read_json
from edgetie.bundle.names import IMAGE_LM, IMAGE_TO_TEXT, PREPROCESSOR, PROCESSOR, SPEECH
from edgetie.errors import SourceError, summarize

logger = logging.getLogger(__name__)

_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZERS = ("tokenizer.json", _TOKENIZER_CONFIG, "tokenizer.model", "vocab.json")
_PREPROCESSORS = (PREPROCESSOR, PROCESSOR)
_AUDIO_TASKS = (SPEECH, "seq2seq-lm")  # transformers lists some audio models with text models
_SIDES = ("height", "width")
_IMAGE_TASKS = (IMAGE_LM, IMAGE_TO_TEXT)


def save_extras(text: str, config: Any, task: str, options: dict[str, Any], target: Path) -> None:
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
    if any(cached_file(text, name, options) for name in _TOKENIZERS):
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
    return [path for name in _PREPROCESSORS if (path := cached_file(text, name, options))]


def read_image_size(text: str, task: str, options: dict[str, Any]) -> tuple[int, int] | None:
    """Read height and width of all images that the processor makes; ``None`` if they differ.

    Raises:
        SourceError: if its settings are damaged.
    """
    if task not in _IMAGE_TASKS:
        return None
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


def cached_file(text: str, name: str, options: dict[str, Any]) -> Path | None:
    """Find a file of a model, downloaded if need be; ``None`` if it has no such file."""
    from transformers import utils

    try:
        path = utils.cached_file(text, name, local_files_only=options["local_files_only"])
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
