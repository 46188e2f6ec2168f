"""Memory of this process, as the kernel counts it, and giving back file pages it no longer needs.

ONNX Runtime maps a model's external-data file and, on most providers, packs each weight into
private memory of its own when a session starts. The file's pages were read for that once and then
only take up room: :func:`release_file_pages` lets go of them. A page that is needed after all is
read again by the kernel, so nothing can be lost.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

_MADV_PAGEOUT = 21  # Linux 5.4; in no version of Python's mmap module


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a process in bytes.

    Attributes:
        rss: resident pages of every kind.
        anonymous: resident pages that belong to no file: what the process really costs.
        file_mapped: resident pages of mapped files, which the kernel can drop and other
            processes share.
        peak: largest ``rss`` so far.
    """

    rss: int
    anonymous: int
    file_mapped: int
    peak: int


def read_memory() -> MemoryUse:
    """The memory use of this process.

    Exact on Linux. Elsewhere only the peak is known; it stands for ``rss`` and ``anonymous`` too.
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
    rows = (line.split() for line in Path(path).read_text(encoding="ascii").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[-1:] == ["kB"]}


def _peak_from_getrusage() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_LARGE = 1 << 20  # bytes; what is smaller is not worth a system call


class MappedFiles:
    """This process's mappings of some files, as they are when it is made.

    Args:
        paths: files, e.g. a model's external data. Where the system does not list mappings (only
            Linux does) there are none.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        wanted = {os.path.realpath(path) for path in paths}
        self._ranges: list[tuple[int, int, int]] = []
        try:
            with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
                for address, length in _mapped_ranges(wanted):
                    _, written = _resident_pages(pagemap, address, length)
                    # DONTNEED forgets what was written to a page; such a range is paged out
                    advice = _MADV_PAGEOUT if written else mmap.MADV_DONTNEED
                    self._ranges.append((address, length, advice))
        except OSError:  # no /proc here, or one without these files
            self._ranges = []

    def touched(self) -> MappedFiles:
        """The large ones of these mappings that have resident pages now."""
        result = MappedFiles([])
        if self._ranges:
            with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
                result._ranges = [
                    (address, length, advice)
                    for address, length, advice in self._ranges
                    if length >= _LARGE and _resident_pages(pagemap, address, length)[0]
                ]
        return result

    def keep_written(self) -> None:
        """Leave out mappings that this process has written to."""
        self._ranges = [row for row in self._ranges if row[2] == mmap.MADV_DONTNEED]

    def release(self) -> None:
        """Let go of the resident pages; those that are needed again are read again."""
        for address, length, advice in self._ranges:
            _c_library().madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice)

    def resident_bytes(self) -> int:
        """Resident bytes that are the files' own."""
        if not self._ranges:
            return 0
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            pages = sum(_resident_pages(pagemap, a, length)[0] for a, length, _ in self._ranges)
        return pages * mmap.PAGESIZE


def release_file_pages(paths: Iterable[str | os.PathLike[str]]) -> int:
    """Let go of the resident pages of ``paths`` that this process has mapped.

    Pages the process wrote to are kept. Does nothing where the system offers no way.

    Returns:
        Bytes that were resident and no longer are.
    """
    files = MappedFiles(paths)
    before = files.resident_bytes()
    files.release()
    return max(0, before - files.resident_bytes())


def release_code(library: str | os.PathLike[str]) -> None:
    """Let go of a loaded library's code; what is needed again is read again.

    Two thirds of ONNX Runtime's code that is resident when a session has started only starts one:
    10 MB.
    """
    files = MappedFiles([library])
    files.keep_written()
    files.release()


def release_freed_memory() -> None:
    """Collect garbage and return the C library's free pages to the system."""
    gc.collect()
    release_heap()


def release_heap() -> None:
    """Let go of memory that the C library keeps for later; does nothing where it cannot be told to.

    A prompt leaves some 2 MB behind on a model of 135 M parameters.
    """
    if sys.platform == "linux":
        trim = getattr(_c_library(), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(ctypes.c_size_t(0))


@cache
def _c_library() -> ctypes.CDLL:
    """The C library of this process; to look it up takes longer than to call it."""
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
        samples: ``(seconds since the start, MemoryUse)``, the first and last at its two ends.
    """

    def __init__(self, interval: float = 0.05) -> None:
        """Args:
        interval: seconds between samples.
        """
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        self.samples.append((time.perf_counter() - self._start, read_memory()))
