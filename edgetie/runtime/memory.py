"""Measure the memory of this process and release file pages that it no longer needs.

ONNX Runtime maps a model's external-data file and, on most providers, packs each weight into
private memory when a session starts. After that the file's pages are not needed:
:func:`release_file_pages` releases them. If a page is needed again the kernel reads it again, so
nothing can be lost.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

logger = logging.getLogger(__name__)

_MADV_PAGEOUT = 21  # Linux 5.4; in no version of Python's mmap module


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a process in bytes.

    Attributes:
        rss: resident pages of every kind.
        anonymous: resident pages that belong to no file: the real cost of the process.
        file_mapped: resident pages of mapped files, which the kernel can drop and other
            processes share.
        peak: largest ``rss`` so far.
    """

    rss: int
    anonymous: int
    file_mapped: int
    peak: int


def read_memory() -> MemoryUse:
    """Measure the memory use of this process.

    Exact on Linux. On other systems only the peak is known, also for ``rss`` and ``anonymous``.
    """
    try:
        status = _kilobytes("/proc/self/status")
        peak = status["VmHWM"]
    except (OSError, KeyError):
        peak = _peak_from_getrusage()
        return MemoryUse(rss=peak, anonymous=peak, file_mapped=0, peak=peak)
    try:
        now = _kilobytes("/proc/self/smaps_rollup")
        rss, anonymous = now["Rss"], now["Anonymous"]
    except (OSError, KeyError):  # old kernels, and sandboxes that hide the file
        rss, anonymous = status["VmRSS"], status.get("RssAnon", status["VmRSS"])
    return MemoryUse(rss, anonymous, rss - anonymous, max(peak, rss))


def _kilobytes(path: str) -> dict[str, int]:
    """The ``Name:  123 kB`` lines of a file below /proc, in bytes."""
    lines = (line.split() for line in Path(path).read_text(encoding="ascii").splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1:] == ["kB"]}


def _peak_from_getrusage() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_LARGE = 1 << 20  # bytes; a smaller mapping is not worth a system call


class MappedFiles:
    """This process's mappings of some files at the time of construction; only Linux lists them."""

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        wanted = {os.path.realpath(path) for path in paths}
        self._ranges: list[tuple[int, int, int]] = []  # address, length, advice
        try:
            with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
                for address, length in _mapped_ranges(wanted):
                    _, written = _resident_pages(pagemap, address, length)
                    # DONTNEED forgets what was written to a page; such a range is paged out
                    advice = _MADV_PAGEOUT if written else mmap.MADV_DONTNEED
                    self._ranges.append((address, length, advice))
        except OSError:  # no /proc here, or one without these files
            logger.debug("mapped files cannot be listed", exc_info=True)
            self._ranges = []

    def touched(self) -> MappedFiles:
        """Select the large mappings that have resident pages now."""
        result = MappedFiles([])
        resident = zip(self._ranges, self._resident_pages(), strict=True)
        result._ranges = [r for r, pages in resident if r[1] >= _LARGE and pages]
        return result

    def leave_out_written(self) -> None:
        """Leave out mappings that this process has written to."""
        self._ranges = [r for r in self._ranges if r[2] == mmap.MADV_DONTNEED]

    def release(self) -> None:
        """Release the resident pages; the kernel reads again those that are needed again."""
        for address, length, advice in self._ranges:
            _c_library().madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice)

    def resident_bytes(self) -> int:
        """Count resident bytes, without private copies."""
        return sum(self._resident_pages()) * mmap.PAGESIZE

    def _resident_pages(self) -> list[int]:
        if not self._ranges:
            return []
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            return [_resident_pages(pagemap, start, size)[0] for start, size, _ in self._ranges]


def release_file_pages(paths: Iterable[str | os.PathLike[str]]) -> int:
    """Release the resident pages of mapped files, as far as the system can; returns their bytes.

    What the process has written to them is not lost.
    """
    files = MappedFiles(paths)
    before = files.resident_bytes()
    files.release()
    return max(0, before - files.resident_bytes())


def release_code(library: str | os.PathLike[str]) -> None:
    """Release a loaded library's code; of ONNX Runtime's, 10 MB only start a session."""
    files = MappedFiles([library])
    files.leave_out_written()
    files.release()


def release_freed_memory() -> None:
    """Collect garbage and return the C library's free pages to the system."""
    gc.collect()
    release_heap()


def release_heap() -> None:
    """Return memory that the C library holds for later: 2 MB after a prompt of a 135 M model."""
    if sys.platform == "linux":
        trim = getattr(_c_library(), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(ctypes.c_size_t(0))


@cache
def _c_library() -> ctypes.CDLL:
    """The C library of this process; finding it takes longer than calling it."""
    return ctypes.CDLL(None)


def _mapped_ranges(paths: set[str]) -> Iterator[tuple[int, int]]:
    """``(address, length)`` of every mapping of the files ``paths`` (real paths)."""
    with Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(None, 5)  # address perms offset dev inode path
            if len(fields) == 6 and fields[5] in paths:
                start, end = (int(part, 16) for part in fields[0].split("-"))
                yield start, end - start


def _resident_pages(pagemap: BinaryIO, address: int, length: int) -> tuple[int, int]:
    """Pages of a mapping that are resident and the file's own, and those written to."""
    size = length // mmap.PAGESIZE * 8
    pagemap.seek(address // mmap.PAGESIZE * 8)
    data = bytearray()
    while len(data) < size and (part := pagemap.read(size - len(data))):
        data += part
    entries = np.frombuffer(data, np.uint64)
    # bit 63: in memory, 62: in swap, 61: a page of the file rather than a private copy
    in_use, of_file = entries >> np.uint64(62), (entries >> np.uint64(61)) & np.uint64(1)
    clean = int(np.count_nonzero((in_use == 2) & (of_file == 1)))
    return clean, int(np.count_nonzero(in_use)) - clean


class MemorySampler:
    """Samples memory use in a thread while a ``with`` block runs.

    Attributes:
        samples: ``(seconds since the start, MemoryUse)``, also at the start and the end.

    Args:
        interval: seconds between samples.
    """

    def __init__(self, interval: float = 0.05) -> None:
        self.samples: list[tuple[float, MemoryUse]] = []
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)
        self._start = 0.0

    def __enter__(self) -> MemorySampler:
        self._start = time.perf_counter()
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        self.samples.append((time.perf_counter() - self._start, read_memory()))
