"""Typical magnitudes of a model's activations, measured on text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgetie.errors import QuantizeError

_WINDOW = 128  # tokens of one run: keeps the recorded activations small

Array = np.ndarray[Any, Any]


def channel_magnitudes(
    model_path: Path, names: Sequence[str], tokens: Sequence[int]
) -> dict[str, Array]:
    """Mean absolute value of each channel of the named activations.

    Args:
        model_path: a model with ``input_ids``, ``attention_mask`` and perhaps a KV cache.
        names: values of the graph, ``(batch, sequence, channels)``.
        tokens: a text; it is read in windows of 128 tokens.

    Returns:
        ``(channels,)`` float32 for each name.

    Raises:
        QuantizeError: if the model cannot be run on the CPU.
    """
    import onnxruntime

    model = onnx.load(str(model_path), load_external_data=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model_path.parent.resolve())
    )
    sums: dict[str, Array] = {name: np.zeros(1) for name in names}
    count = 0
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for start in range(0, len(tokens), _WINDOW):
            window = np.array(tokens[start : start + _WINDOW], np.int64)[None]
            results = session.run(list(names), _feeds(session, window))
            for name, result in zip(names, results, strict=True):
                # in float64: the sums run over all windows
                sums[name] = sums[name] + np.abs(result).reshape(-1, result.shape[-1]).sum(
                    axis=0, dtype=np.float64
                ) / result[..., 0].size * window.size
            count += window.size
    except Exception as error:
        raise QuantizeError(f"{model_path}: calibration cannot run it ({error})") from error
    return {name: (total / count).astype(np.float32) for name, total in sums.items()}


def _feeds(session: Any, ids: Array) -> dict[str, Array]:
    """One window of tokens, nothing cached."""
    feeds: dict[str, Array] = {}
    for value in session.get_inputs():
        if value.name == "input_ids":
            feeds[value.name] = ids
        elif value.name == "attention_mask":
            feeds[value.name] = np.ones_like(ids)
        elif value.name == "position_ids":
            feeds[value.name] = np.arange(ids.shape[1])[None]
        else:
            shape = [1 if axis == 0 else 0 if not isinstance(d, int) else d
                     for axis, d in enumerate(value.shape)]  # fmt: skip
            feeds[value.name] = np.zeros(shape, np.float32)
    return feeds
