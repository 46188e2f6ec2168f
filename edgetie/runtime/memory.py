"""Memory of this process, as the kernel counts it, and giving back file pages it no longer needs.

ONNX Runtime maps a model's external-data file and, on most providers, packs each weight into
private memory of its own when a session starts. The file's pages were read for that once and then
only take up room: :func:`release_file_pages` lets go of them. A page that is needed after all is
read again by the kernel, so nothing can be lost.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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


def release_file_pages(paths: Iterable[str | os.PathLike[str]]) -> int:
    """Let go of the resident pages of ``paths`` that this process has mapped.

    Pages the process wrote to are kept. Does nothing where the system offers no way (only Linux
    does).

    Args:
        paths: files, e.g. a model's external data.

    Returns:
        Bytes that were resident and no longer are.
    """
    wanted = {os.path.realpath(path) for path in paths}
    try:
        ranges = list(_mapped_ranges(wanted))
        if not ranges:
            return 0
        madvise = ctypes.CDLL(None).madvise
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            before = [_resident_pages(pagemap, *span) for span in ranges]
            for (address, length), (_, written) in zip(ranges, before, strict=True):
                # DONTNEED forgets what was written to a page; a range with such is paged out
                advice = _MADV_PAGEOUT if written else mmap.MADV_DONTNEED
                madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice)
            after = [_resident_pages(pagemap, *span) for span in ranges]
    except OSError:  # no /proc here, or one without these files
        return 0
    released = sum(clean for clean, _ in before) - sum(clean for clean, _ in after)
    return max(0, released) * mmap.PAGESIZE


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
