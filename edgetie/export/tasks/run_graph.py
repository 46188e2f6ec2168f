"""Running a written graph to hold it against torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime

from edgetie.errors import ExportError, summarize


@contextlib.contextmanager
def open_graph(path: Path) -> Iterator[Any]:
    """A session on the CPU; its errors, and those of its runs, are the export's.

    Raises:
        ExportError: if ONNX Runtime does not load or run it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # packing weights would only make this one-time run slower to start, and larger
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        yield onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"{path.name}: ONNX Runtime cannot run it ({summarize(error)})"
        ) from error
