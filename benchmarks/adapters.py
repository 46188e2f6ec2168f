"""Cost of LoRA adapters over one base: memory, time to switch, tokens per second.

    python benchmarks/adapters.py BASE ADAPTED NAME NAME

BASE is a bundle without adapters, ADAPTED the same model with them. Each process that measures
memory reads a prompt of 64 tokens and adds 32, once with each adapter. Times are taken in turns.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np

import edgetie

_ROUNDS, _STEPS, _PROMPT = 15, 40, 128
_WORKER = """
import sys
import edgetie
from edgetie.runtime.memory import read_memory
session = edgetie.open_session(sys.argv[1])
for name in sys.argv[2:] or [None]:
    session.use_adapter(name)
    tokens = edgetie.generate(
        session, [range(100, 164)], max_new_tokens=32, stop_token_ids=frozenset()
    )
    list(tokens)
print(read_memory().rss)
"""


@click.command(help=__doc__)
@click.argument("base", type=click.Path(exists=True, path_type=Path))
@click.argument("adapted", type=click.Path(exists=True, path_type=Path))
@click.argument("names", nargs=2)
def main(base: Path, adapted: Path, names: tuple[str, str]) -> None:
    """Print all as Markdown tables."""
    alone, both = _resident(base), _resident(adapted, *names)
    print(f"resident {alone / 1e6:.1f} MB, after both adapters {both / 1e6:.1f} MB")
    print(f"ratio {both / alone:.3f}\n")
    sessions = edgetie.open_session(base), edgetie.open_session(adapted)
    first, again = _switch_times(sessions[1], names)
    print(f"switch: first use {first * 1e3:.1f} ms, later {again * 1e3:.1f} ms\n")
    runs = {"without adapters": (sessions[0], None), "none in use": (sessions[1], None)}
    runs |= {name: (sessions[1], name) for name in names}
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in runs}
    for _ in range(_ROUNDS):
        for label, (session, name) in runs.items():
            times[label].append(_times(session, name))
    print("| adapter | prompt of 128 tokens, ms | token, ms | ratios |\n| --- | --- | --- | --- |")
    reference = np.array(times["without adapters"])
    for label, rows in times.items():
        prompt, token = np.median(rows, axis=0) * 1e3
        ratios = np.median(np.array(rows) / reference, axis=0)
        print(f"| {label} | {prompt:.0f} | {token:.1f} | {ratios[0]:.2f}, {ratios[1]:.2f} |")


def _resident(bundle: Path, *names: str) -> int:
    """Resident bytes of a process that used adapters in turn."""
    command = [sys.executable, "-c", _WORKER, str(bundle), *names]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _switch_times(session: edgetie.Session, names: tuple[str, str]) -> tuple[float, float]:
    """Seconds until a new decoder has an adapter: longest first use, median of later ones."""
    edgetie.Decoder(session, 1, 256)
    seconds = []
    for name in names * 10:
        start = time.perf_counter()
        session.use_adapter(name)
        edgetie.Decoder(session, 1, 256)
        seconds.append(time.perf_counter() - start)
    return max(seconds[:2]), float(np.median(seconds[2:]))


def _times(session: edgetie.Session, name: str | None) -> tuple[float, float]:
    """Seconds of a prompt, and the median of a token's."""
    session.use_adapter(name)
    decoder = edgetie.Decoder(session, 1, _PROMPT + _STEPS)
    moments = [time.perf_counter()]
    decoder.prefill(np.full((1, _PROMPT), 100, np.int64))
    for _ in range(_STEPS):
        moments.append(time.perf_counter())
        decoder.step(np.array([100]))
    moments.append(time.perf_counter())
    seconds = np.diff(moments)
    return float(seconds[0]), float(np.median(seconds[1:]))


main()
