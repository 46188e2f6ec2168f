"""A decoder's ONNX file in a plain ONNX Runtime session.

The cache grows with every token and stays in OrtValues, so that Python copies nothing. This is
faster than the `generate` of the exporters which write such files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from _measure import Emit, Generate, main


def open_model(path: Path, threads: int, length: int) -> Generate:
    (file,) = path.glob("*.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    caches = [item for item in session.get_inputs() if item.name.startswith("past_key_values.")]
    takes_positions = any(item.name == "position_ids" for item in session.get_inputs())
    outputs = [
        "logits",
        *(item.name.replace("past_key_values.", "present.") for item in caches),
    ]

    def generate(prompt: list[int], count: int, emit: Emit) -> None:
        past = [
            _value(np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)) for item in caches
        ]
        step, seen = prompt, 0
        for _ in range(count):
            feeds = dict(zip((item.name for item in caches), past, strict=True))
            feeds["input_ids"] = _row(step)
            feeds["attention_mask"] = _row([1] * (seen + len(step)))
            if takes_positions:
                feeds["position_ids"] = _row(range(seen, seen + len(step)))
            logits, *past = session.run_with_ort_values(outputs, feeds)
            token = int(logits.numpy()[0, -1].argmax())
            emit(token)
            step, seen = [token], seen + len(step)

    return generate


def _row(values: list[int] | range) -> ort.OrtValue:
    return _value(np.array([values], np.int64))


def _value(array: np.ndarray) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(array)


main(open_model)
