"""Measure the memory of this process and release file pages that it no longer needs."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

_MADV_PAGEOUT = 21  # Linux 5.4; in no version of Python's mmap module
_LARGE = 1 << 20  # bytes; a smaller mapping is not worth a system call


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a process in bytes.

    Attributes:
        rss: resident pages of every kind.
        anonymous: resident pages that belong to no file: the real cost of the process.
        peak: largest ``rss`` so far.
    """

    rss: int
    anonymous: int
    peak: int

    @property
    def file_mapped(self) -> int:
        """Resident pages of files, which the kernel can drop and other processes share."""
        return self.rss - self.anonymous


def read_memory() -> MemoryUse:
    """Measure the memory use of this process.

    Exact on Linux. On other systems only the peak is known, also for ``rss`` and ``anonymous``.
    """
    try:
        status = _kilobytes("/proc/self/status")
        peak = status["VmHWM"]
    except (OSError, KeyError):
        try:
            import resource
        except ImportError:  # Windows
            return MemoryUse(0, 0, 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024
        return MemoryUse(peak, peak, peak)
    try:
        now = _kilobytes("/proc/self/smaps_rollup")
        rss, anonymous = now["Rss"], now["Anonymous"]
    except (OSError, KeyError):  # old kernels, and sandboxes that hide the file
        rss, anonymous = status["VmRSS"], status.get("RssAnon", status["VmRSS"])
    return MemoryUse(rss, anonymous, max(peak, rss))


def _kilobytes(path: str) -> dict[str, int]:
    """The ``Name:  123 kB`` lines of a file below /proc, in bytes."""
    lines = (line.split() for line in Path(path).read_text(encoding="ascii").splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1:] == ["kB"]}


class MappedFiles:
    """This process's mappings of some files at the time of construction; only Linux lists them.

    ONNX Runtime maps a model's weights and, on most providers, packs them into private memory when
    a session starts. Then the file's pages can be released; the kernel reads again those that are
    needed again.

    Keep it no longer than the mappings exist: later, other memory may lie at their addresses, which
    :meth:`release` would empty.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._paths = wanted = {os.path.realpath(path) for path in paths}
        self._ranges: list[tuple[int, int, bool]] = []  # address, length, whether written to
        try:
            maps = Path("/proc/self/maps").read_text("utf-8", "surrogateescape")
            mapped: list[tuple[int, int, bool]] = []
            for line in maps.split("\n"):
                fields = line.split(None, 5)  # address perms offset dev inode path
                if len(fields) == 6 and fields[5] in wanted:
                    start, end = (int(part, 16) for part in fields[0].split("-"))
                    mapped.append((start, end - start, False))
            counts = zip(mapped, _resident_pages(mapped), strict=True)
            self._ranges = [(start, size, dirty > 0) for (start, size, _), (_, dirty) in counts]
        except OSError:  # no /proc here, or one without these files
            logger.debug("mapped files cannot be listed", exc_info=True)

    def added(self) -> MappedFiles:
        """List the mappings of the same files that were made since."""
        result = MappedFiles(self._paths)
        before = {place[:2] for place in self._ranges}
        result._ranges = [place for place in result._ranges if place[:2] not in before]
        return result

    def touched(self) -> MappedFiles:
        """Select the large mappings that have resident pages now."""
        result = MappedFiles([])
        counts = zip(self._ranges, _resident_pages(self._ranges), strict=True)
        result._ranges = [place for place, (clean, _) in counts if place[1] >= _LARGE and clean]
        return result

    def release(self, *, written: bool = True) -> None:
        """Release the resident pages, or only those of mappings never ``written`` to."""
        for address, length, is_written in self._ranges:
            if is_written and not written:
                continue
            # DONTNEED forgets what was written to a page; such a range is paged out
            advice = _MADV_PAGEOUT if is_written else mmap.MADV_DONTNEED
            _c_library().madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice)

    def resident_bytes(self) -> int:
        """Count resident bytes, without private copies."""
        return sum(clean for clean, _ in _resident_pages(self._ranges)) * mmap.PAGESIZE


def _resident_pages(ranges: list[tuple[int, int, bool]]) -> list[tuple[int, int]]:
    """Count each mapping's pages that are resident and the file's own, and those written to."""
    counts: list[tuple[int, int]] = []
    if not ranges:
        return counts
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        for address, length, _ in ranges:
            pagemap.seek(address // mmap.PAGESIZE * 8)
            entries = np.frombuffer(pagemap.read(length // mmap.PAGESIZE * 8), np.uint64)
            # bit 63: in memory, 62: in swap, 61: a page of the file rather than a private copy
            in_use, of_file = entries >> np.uint64(62), (entries >> np.uint64(61)) & np.uint64(1)
            clean = int(np.count_nonzero((in_use == 2) & (of_file == 1)))
            counts.append((clean, int(np.count_nonzero(in_use)) - clean))
    return counts


def release_file_pages(paths: Iterable[str | os.PathLike[str]]) -> int:
    """Release the resident pages of mapped files, as far as the system can; returns their bytes.

    What the process has written to them is not lost.
    """
    files = MappedFiles(paths)
    before = files.resident_bytes()
    files.release()
    return max(0, before - files.resident_bytes())


def release_heap() -> None:
    """Return memory that the C library holds for later: 2 MB after a prompt of a 135 M model."""
    if sys.platform == "linux" and hasattr(_c_library(), "malloc_trim"):  # glibc's
        _c_library().malloc_trim(ctypes.c_size_t(0))


@cache
def _c_library() -> ctypes.CDLL:
    """The C library of this process; finding it takes longer than calling it."""
    return ctypes.CDLL(None)


@contextmanager
def sample_memory(interval: float = 0.05) -> Iterator[list[tuple[float, MemoryUse]]]:
    """Sample memory use in a thread while a ``with`` block runs, every ``interval`` seconds.

    Yields:
        The samples, ``(seconds since the start, MemoryUse)``, also of the start and the end.
    """
    samples: list[tuple[float, MemoryUse]] = []
    start, stop = time.perf_counter(), threading.Event()

    def sample() -> None:
        samples.append((time.perf_counter() - start, read_memory()))

    def run() -> None:
        while not stop.wait(interval):
            sample()

    thread = threading.Thread(target=run, name="memory-sampler", daemon=True)
    sample()
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()
        sample()
