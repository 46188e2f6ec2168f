"""Memory of other processes, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def memory_of(process: int) -> dict[str, int]:
    """Bytes of a process by the names in its ``status``, such as ``RssAnon:``."""
    lines = Path(f"/proc/{process}/status").read_text("utf-8").splitlines()
    return {line.split()[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith("kB")}


def mapping_of(file: Path, process: int) -> dict[str, int]:
    """Bytes of a process's mappings of a file, by the names in ``smaps``, such as ``Rss:``."""
    sums: dict[str, int] = {}
    is_wanted = False
    for line in Path(f"/proc/{process}/smaps").read_text("utf-8", "replace").splitlines():
        name, *rest = line.split()
        if "-" in name:
            is_wanted = rest[-1] == str(file)
        elif is_wanted and rest[-1] == "kB":
            sums[name] = sums.get(name, 0) + 1024 * int(rest[0])
    return sums
