"""Run a model on a few tokens to find out how it is exported: one module a task."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from edgetie.bundle.names import IMAGE_LM, IMAGE_TO_TEXT
from edgetie.errors import ExportError, summarize
from edgetie.export.tasks import audio_lm, causal, image_lm, image_to_text, masked, seq2seq, speech
from edgetie.export.tasks.base import Task
from edgetie.sources.source import Source
from edgetie.sources.task_detection import tasks_of

_TRIAL_RUNS: dict[str, Callable[[nn.Module, Any], Task]] = {
    "causal-lm": causal.trial_run,
    "masked-lm": masked.trial_run,
    "seq2seq-lm": seq2seq.trial_run,
    "speech-seq2seq": speech.trial_run,
    IMAGE_LM: image_lm.trial_run,
    IMAGE_TO_TEXT: image_to_text.trial_run,
}


def trial_run(source: Source) -> Task:
    """Run the model once and describe how it is exported.

    Raises:
        ExportError: if it cannot be called, or models of its task cannot be exported.
    """
    if source.task not in _TRIAL_RUNS:
        raise ExportError(f"{source.name}: {source.task} models cannot be exported yet")
    run = _TRIAL_RUNS[source.task]
    if source.task != IMAGE_LM and audio_lm.is_audio_model(source.module):
        run = audio_lm.trial_run
    elif source.task == IMAGE_TO_TEXT:
        run = partial(image_to_text.trial_run, image_size=source.image_size)
    try:
        return run(source.module, source.config)
    except Exception as error:
        is_reader = source.task in (IMAGE_LM, IMAGE_TO_TEXT)
        has_text = is_reader and source.config and "causal-lm" in tasks_of(source.config)
        advice = {"task": "causal-lm"} if has_text else None  # its text alone
        raise ExportError(
            f"{source.name}: calling it with a few tokens failed "
            f"({type(error).__name__}: {summarize(error)})",
            advice=advice,
        ) from error
