"""A decoder's ONNX file in a plain ONNX Runtime session.

The cache grows with every token and stays in OrtValues, so that Python copies nothing. This is
faster than the `generate` of the exporters which write such files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

PAST, PRESENT = "past_key_values.", "present."


class Decoder:
    """One sequence and its cache.

    Args:
        path: a directory with one .onnx file.
        threads: of one operator.
        head_size: the last dimension of the cache, where the file gives that only a name.
    """

    def __init__(self, path: Path, threads: int, head_size: int = 0) -> None:
        (file,) = path.glob("*.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        inputs = self.session.get_inputs()
        self.takes_positions = any(item.name == "position_ids" for item in inputs)
        self.empty = {}
        for item in inputs:
            if item.name.startswith(PAST):
                heads, size = item.shape[1], item.shape[3]
                shape = (1, heads, 0, size if isinstance(size, int) else head_size)
                self.empty[item.name] = _value(np.zeros(shape, np.float32))
        self.outputs = ["logits", *(name.replace(PAST, PRESENT) for name in self.empty)]
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self.past, self.seen = self.empty, 0

    def read(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Read on, and return the logits ``(positions, vocabulary)``."""
        total = self.seen + len(ids)
        feeds = {**self.past, "input_ids": _row(ids), "attention_mask": _row([1] * total)}
        if self.takes_positions:
            feeds["position_ids"] = _row(range(self.seen, total))
        logits, *present = self.session.run_with_ort_values(self.outputs, feeds)
        self.past, self.seen = dict(zip(self.empty, present, strict=True)), total
        result: npt.NDArray[np.float32] = logits.numpy()[0]
        return result

    def logits(self, ids: list[int]) -> npt.NDArray[np.float32]:
        """The logits ``(positions, vocabulary)`` of a sequence of its own."""
        self.reset()
        return self.read(ids)


def _row(values: Sequence[int]) -> ort.OrtValue:
    return _value(np.array([values], np.int64))


def _value(array: npt.NDArray[np.int64] | npt.NDArray[np.float32]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(array)
