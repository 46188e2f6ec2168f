"""Proportional memory of several processes that run one bundle, over what they have after imports.

    python benchmarks/shared_memory.py BUNDLE [--processes 2]

A page that two processes share counts half in each (PSS of Linux). Each reads a prompt of 32 tokens
and adds 16.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

_WORKER = """
import sys
import numpy, onnxruntime, tokenizers
from edgetie import generate, open_session
from edgetie.runtime.decoding import generation
print("imported", flush=True)
sys.stdin.readline()
session = open_session(sys.argv[1])
print("loaded", flush=True)
sys.stdin.readline()
list(generate(session, [range(100, 132)], max_new_tokens=16, stop_token_ids=frozenset()))
print("ran", flush=True)
sys.stdin.readline()
"""


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--processes", default=2, show_default=True)
def main(bundle: Path, processes: int) -> None:
    """Print both moments as a Markdown table."""
    files = sum(file.stat().st_size for file in bundle.iterdir() if file.is_file())
    before, loaded, ran = _moments(bundle, processes)
    print(f"{processes} processes, files {files / 1e6:.1f} MB\n")
    print("| after | PSS of all, MB | ÷ files | private of each, MB |\n|---|---|---|---|")
    for name, rows in (("load", loaded), ("48 tokens", ran)):
        total = sum(pss for pss, _ in rows) - sum(pss for pss, _ in before)
        own = [now - then for (_, now), (_, then) in zip(rows, before, strict=True)]
        private = ", ".join(f"{value / 1e6:.1f}" for value in own)
        print(f"| {name} | {total / 1e6:.1f} | {total / files:.3f} | {private} |")


def _moments(bundle: Path, processes: int) -> Iterator[list[tuple[int, int]]]:
    """``(PSS, anonymous)`` of every process: after imports, after load, after its tokens."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(bundle)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for _ in range(3):
        for worker in workers:
            assert worker.stdout is not None
            if not worker.stdout.readline():
                raise click.ClickException(f"a process ended with exit code {worker.wait()}")
        yield [_read(worker.pid) for worker in workers]
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()


def _read(pid: int) -> tuple[int, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kilobytes["Pss"] * 1024, kilobytes["Anonymous"] * 1024


main()
