"""Arrays that are kept in a file until they are needed."""

import os
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from edgetie.quantize.weights.affine import Array


class ArraySpill:
    """A file without a name, which is gone when the process ends, however that happens.

    Args:
        directory: where there is space for it.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - open as long as this is

    def put(self, array: Array) -> Callable[[], Array]:
        """Write an array and return a function that maps it, read-only."""
        with self._lock:
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(np.ascontiguousarray(array).data)
            self._file.flush()
        return partial(np.memmap, self._file, array.dtype, "r", start, array.shape)
