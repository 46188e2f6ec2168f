"""Detect the task of a transformers model from its class or its configuration."""

from typing import Any

TASKS = ("causal-lm", "masked-lm", "seq2seq-lm", "speech-seq2seq")
"""The tasks that a user can name; ``auto`` detects one."""

_FAMILIES = {
    "speech-seq2seq": ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", "AutoModelForSpeechSeq2Seq"),
    "seq2seq-lm": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "AutoModelForSeq2SeqLM"),
    "causal-lm": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "AutoModelForCausalLM"),
    "masked-lm": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "AutoModelForMaskedLM"),
}


def task_of(config: Any, architectures: list[str] | None = None) -> str:
    """Detect the task of a model, one of :data:`TASKS`; ``causal-lm`` if nothing decides.

    Args:
        config: its transformers configuration, or ``None``.
        architectures: names of its class; by default those in the configuration.
    """
    if config is None or not hasattr(config, "model_type"):
        return "causal-lm"
    from transformers.models.auto import modeling_auto

    names = set(architectures or getattr(config, "architectures", None) or ())
    classes = {task: dict(getattr(modeling_auto, name)) for task, (name, _) in _FAMILIES.items()}
    candidates = [task for task in classes if names & set(classes[task].values())]
    candidates = candidates or [task for task in classes if config.model_type in classes[task]]
    if getattr(config, "is_encoder_decoder", False):
        order = ["speech-seq2seq", "seq2seq-lm", "causal-lm", "masked-lm"]
    elif getattr(config, "is_decoder", False):
        order = ["causal-lm", "masked-lm", "seq2seq-lm", "speech-seq2seq"]
    else:
        order = ["masked-lm", "causal-lm", "seq2seq-lm", "speech-seq2seq"]
    return next((task for task in order if task in candidates), "causal-lm")


def auto_class(task: str) -> Any:
    """The transformers class that loads models of a task."""
    import transformers

    return getattr(transformers, _FAMILIES[task][1])
