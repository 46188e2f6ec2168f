"""What models do, and what graphs they become: one module a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetie.errors import ExportError, summarize
from edgetie.export.tasks import audio_lm, causal, masked, seq2seq, speech
from edgetie.export.tasks.base import Agreement, Expected, Graph, Task

if TYPE_CHECKING:
    from edgetie.sources.source import Source

__all__ = ["Agreement", "Expected", "Graph", "Task", "probe"]

_PROBES = {
    "causal-lm": causal.probe,
    "masked-lm": masked.probe,
    "seq2seq-lm": seq2seq.probe,
    "speech-seq2seq": speech.probe,
}


def probe(source: Source) -> Task:
    """Run the model once and read off what it needs; an error in it is the source's, not ours.

    Raises:
        ExportError: if it cannot be called, or its task is not one of those that can be exported.
    """
    if source.task not in _PROBES:
        raise ExportError(f"{source.name}: {source.task} models cannot be exported yet")
    probe = audio_lm.probe if audio_lm.is_audio_model(source.module) else _PROBES[source.task]
    try:
        return probe(source.module, source.config)
    except Exception as error:
        raise ExportError(
            f"{source.name}: calling it with a few tokens failed "
            f"({type(error).__name__}: {summarize(error)})"
        ) from error
