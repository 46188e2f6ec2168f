"""Detect the task of a transformers model from its class or its configuration."""

from typing import Any

from edgetie.bundle.names import IMAGE_LM, IMAGE_TO_TEXT

TASKS = (
    "causal-lm", "masked-lm", "seq2seq-lm", "speech-seq2seq", IMAGE_LM, IMAGE_TO_TEXT,
)  # fmt: skip
"""The tasks that a user can name; ``auto`` detects one."""

_FAMILIES = {
    "speech-seq2seq": ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", "AutoModelForSpeechSeq2Seq"),
    "seq2seq-lm": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "AutoModelForSeq2SeqLM"),
    "causal-lm": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "AutoModelForCausalLM"),
    "masked-lm": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "AutoModelForMaskedLM"),
    IMAGE_LM: ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "AutoModelForImageTextToText"),
    IMAGE_TO_TEXT: ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "AutoModelForImageTextToText"),
}


def task_of(config: Any, architectures: list[str] | None = None) -> str:
    """Detect the task of a model, one of :data:`TASKS`; ``causal-lm`` if nothing decides.

    Args:
        config: its transformers configuration, or ``None``.
        architectures: names of its class; by default those in the configuration.
    """
    if config is None or not hasattr(config, "model_type"):
        return "causal-lm"
    names = set(architectures or _architectures(config))
    classes = _classes()
    candidates = [task for task in classes if names & set(classes[task].values())]
    candidates = candidates or [task for task in classes if config.model_type in classes[task]]
    if getattr(config, "is_encoder_decoder", False):
        order = ["speech-seq2seq", "seq2seq-lm", "causal-lm", "masked-lm"]
    elif getattr(config, "is_decoder", False):
        order = ["causal-lm", "masked-lm", "seq2seq-lm", "speech-seq2seq"]
    else:
        order = ["masked-lm", "causal-lm", "seq2seq-lm", "speech-seq2seq"]
    task = next((task for task in order if task in candidates), None)
    readers = set(classes[IMAGE_LM].values())
    if task is None and IMAGE_LM in candidates:
        return _image_task(config, names & readers)
    if task == "causal-lm":  # some classes are listed as both
        readers &= (names or {classes[task][config.model_type]}) & set(classes[task].values())
        if readers:
            return _image_task(config, readers)
    return task or "causal-lm"


def _image_task(config: Any, names: set[str]) -> str:
    """The task of a model that reads images: decoders have a method that embeds them."""
    import transformers

    names = names or {_classes()[IMAGE_LM][config.model_type]}
    classes = [getattr(transformers, name) for name in names]
    embeds_images = all(hasattr(each, "get_image_features") for each in classes)
    is_decoder = embeds_images and not getattr(config, "is_encoder_decoder", False)
    return IMAGE_LM if is_decoder else IMAGE_TO_TEXT


def tasks_of(config: Any) -> list[str]:
    """List the tasks for which transformers has classes that load a configuration's models."""
    return [task for task, names in _classes().items() if config.model_type in names]


def other_class(config: Any) -> str | None:
    """Return the class that a configuration names, if it is none of any task's."""
    names = _architectures(config)
    known = {name for classes in _classes().values() for name in classes.values()}
    return names[0] if names and known.isdisjoint(names) else None


def _architectures(config: Any) -> list[str]:
    return list(getattr(config, "architectures", None) or ())


def _classes() -> dict[str, dict[str, str]]:
    """The names of the classes of each task, by the type of model."""
    from transformers.models.auto import modeling_auto

    return {task: dict(getattr(modeling_auto, name)) for task, (name, _) in _FAMILIES.items()}


def auto_class(task: str) -> Any:
    """The transformers class that loads models of a task."""
    import transformers

    return getattr(transformers, _FAMILIES[task][1])
