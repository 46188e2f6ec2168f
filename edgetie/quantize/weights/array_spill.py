"""Arrays that wait in a file until they are needed."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class ArraySpill:
    """A file without a name: it is gone with the process, however that ends.

    Args:
        directory: where there is room for it.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - open as long as this is

    def put(self, array: Array) -> Callable[[], Array]:
        """Write an array; what is returned reads it."""
        with self._lock:
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(np.ascontiguousarray(array).data)
            self._file.flush()
        shape, dtype, size = array.shape, array.dtype, array.nbytes

        def read() -> Array:
            with self._lock:
                self._file.seek(start)
                return np.frombuffer(self._file.read(size), dtype).reshape(shape)

        return read
