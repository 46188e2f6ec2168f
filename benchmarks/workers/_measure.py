"""The measuring protocol, the same for every peer (standard library only).

A worker imports its libraries and then calls `main` with a function which opens a model.
What is measured, in this order: memory before the model, the time to open it, one untimed
generation, then the timed one, and memory at its last token with the cache still alive.

Given the tokens of a reference instead, a worker says how many of them its model would choose
too, each after the reference's own tokens before it: one near-tie then costs one token, not all
that follow. Given a text and a file of a reference's logits, it compares its model's with them, or
writes that file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _accuracy import Logits

WARM_UP_TOKENS = 8

Emit = Callable[[int], None]
"""Takes each generated token as soon as it is known."""

Generate = Callable[[list[int], int, Emit], None]
"""Reads a prompt into an empty cache and emits so many greedy tokens, never stopping earlier."""

Open = Callable[[Path, int, int], Generate]
"""Opens a model, given its path, the number of threads and the longest sequence."""

OpenLogits = Callable[[Path, int, int], "Logits"]
"""Opens a model for its logits, given its path, the number of threads and the longest sequence."""


@dataclass(frozen=True)
class Memory:
    """Bytes of this process, as the kernel counts them."""

    resident: int
    anonymous: int
    peak: int

    @classmethod
    def read(cls) -> Memory:
        now = _kilobytes("/proc/self/smaps_rollup")
        peak = _kilobytes("/proc/self/status")["VmHWM"]
        return cls(now["Rss"] * 1024, now["Anonymous"] * 1024, peak * 1024)


def _kilobytes(path: str) -> dict[str, int]:
    """The `Name:  123 kB` lines of a file below /proc."""
    rows = (line.split() for line in Path(path).read_text(encoding="ascii").splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if row[-1:] == ["kB"]}


def _forget_peak() -> None:
    """Make the kernel's peak start again at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def file_bytes(model: Path) -> int:
    """The size of a model: one file, or everything in its directory."""
    files = model.rglob("*") if model.is_dir() else [model]
    return sum(file.stat().st_size for file in files if file.is_file())


def arguments() -> argparse.Namespace:
    """The command line that every worker has."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompt", type=Path, required=True, help="JSON list of token ids")
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--reference", type=Path, help="JSON list of token ids: compare only")
    parser.add_argument("--accuracy", type=Path, help="JSON list of token ids: compare logits only")
    parser.add_argument("--window", type=int, default=512, help="tokens read at once")
    parser.add_argument("--reference-logits", type=Path, help="file of the reference's logits")
    parser.add_argument("--write-logits", action="store_true", help="write that file")
    return parser.parse_args()


def main(open_model: Open, open_logits: OpenLogits | None = None) -> None:
    """Measure, or compare, once and print one line of JSON."""
    options = arguments()
    prompt = read_ids(options.prompt)
    length = len(prompt) + options.new_tokens
    result: dict[str, object]
    if options.accuracy:
        import _accuracy

        if open_logits is None:
            raise SystemExit("this worker gives no logits")
        result = _accuracy.measure(
            open_logits(options.model, options.threads, options.window),
            read_ids(options.accuracy),
            options.window,
            options.reference_logits,
            write=options.write_logits,
        )
    elif options.reference:
        generate = open_model(options.model, options.threads, length)
        result = compare(generate, prompt, read_ids(options.reference))
    else:
        result = measure(open_model, options, prompt, length)
    print(json.dumps(result), flush=True)


def read_ids(file: Path) -> list[int]:
    """The token ids in a JSON file."""
    ids: list[int] = json.loads(file.read_text(encoding="utf-8"))
    return ids


def compare(generate: Generate, prompt: list[int], reference: list[int]) -> dict[str, object]:
    """How many of the reference's tokens the model predicts from those before them."""
    predicted: list[int] = []
    for known in range(len(reference)):
        generate([*prompt, *reference[:known]], 1, predicted.append)
    pairs = zip(predicted, reference, strict=True)
    return {"same_tokens": sum(ours == theirs for ours, theirs in pairs)}


def measure(
    open_model: Open, options: argparse.Namespace, prompt: list[int], length: int
) -> dict[str, object]:
    """Times and memory of one model."""
    _forget_peak()
    before = Memory.read()
    start = time.perf_counter()
    generate = open_model(options.model, options.threads, length)
    load_seconds = time.perf_counter() - start

    generate(prompt, min(WARM_UP_TOKENS, options.new_tokens), lambda token: None)

    tokens: list[int] = []
    times: list[float] = []
    after = before

    def emit(token: int) -> None:
        nonlocal after
        times.append(time.perf_counter())
        tokens.append(token)
        if len(tokens) == options.new_tokens:
            after = Memory.read()

    start = time.perf_counter()
    generate(prompt, options.new_tokens, emit)
    if len(tokens) != options.new_tokens:
        raise RuntimeError(f"{len(tokens)} tokens came instead of {options.new_tokens}")

    prefill = times[0] - start
    return {
        "load_seconds": load_seconds,
        "prefill_ms": prefill * 1000,
        "prefill_tokens_per_second": len(prompt) / prefill,
        "decode_tokens_per_second": (len(times) - 1) / (times[-1] - times[0]),
        "rss_bytes": after.resident - before.resident,
        "anonymous_bytes": after.anonymous - before.anonymous,
        "peak_rss_bytes": after.peak - before.resident,
        "file_bytes": file_bytes(options.model),
        "threads": options.threads,
        "token_ids": tokens,
    }
