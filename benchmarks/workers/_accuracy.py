"""How far a model's predictions are from a reference's, window by window (numpy only).

The logits of the reference lie in a file of float32, one row for each token of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Logits = Callable[[list[int]], npt.NDArray[np.float32]]
"""The logits ``(positions, vocabulary)`` of a window that nothing comes before."""

Doubles = npt.NDArray[np.float64]

ROWS = 16
"""Positions that are turned into float64 at a time."""


def measure(
    logits: Logits, ids: list[int], window: int, file: Path, *, write: bool
) -> dict[str, object]:
    """Compare with the reference's logits in a file, or write them there first.

    The last position of a window predicts no token of it: it counts for the divergence and the
    likeliest token, but not for the perplexities.
    """
    windows = []
    reference: np.memmap[tuple[int, int], np.dtype[np.float32]] | None = None
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        found = np.asarray(logits(part), np.float32)
        if reference is None:
            shape = (len(ids), found.shape[-1])
            reference = np.memmap(file, np.float32, "w+" if write else "r", shape=shape)
        rows = reference[start : start + window]
        if write:
            rows[:] = found
        windows.append(_compare(rows, found, np.array(part[1:])))
    return _summary(np.array(windows))


def _compare(
    reference: npt.NDArray[np.float32],
    found: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int_],
) -> tuple[float, float, float, float]:
    """Means of a window: both models' nats by token, divergence, agreement on the likeliest."""
    if reference.shape != found.shape:
        raise ValueError(f"logits of shape {found.shape}, the reference's are {reference.shape}")
    expected_nats = nats = divergence = agreements = 0.0
    for start in range(0, len(found), ROWS):
        log_p = _log_softmax(reference[start : start + ROWS])
        log_q = _log_softmax(found[start : start + ROWS])
        divergence += float(np.vdot(np.exp(log_p), log_p - log_q))
        agreements += float((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        wanted = targets[start : start + ROWS]
        scored = np.arange(len(wanted))
        expected_nats -= float(log_p[scored, wanted].sum())
        nats -= float(log_q[scored, wanted].sum())
    tokens, positions = len(targets), len(found)
    return expected_nats / tokens, nats / tokens, divergence / positions, agreements / positions


def _log_softmax(logits: npt.NDArray[np.float32]) -> Doubles:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def _summary(windows: Doubles) -> dict[str, object]:
    """Means over windows of one length, and their standard errors over the choice of windows."""
    expected_nats, nats, divergence, agreement = windows.mean(axis=0)
    ratio = math.exp(nats - expected_nats)
    return {
        "windows": len(windows),
        "perplexity": math.exp(nats),
        "perplexity_increase": ratio - 1,
        "perplexity_increase_error": ratio * _error(windows[:, 1] - windows[:, 0]),
        "kl_divergence": divergence,
        "kl_divergence_error": _error(windows[:, 2]),
        "top1_agreement": agreement,
        "top1_agreement_error": _error(windows[:, 3]),
    }


def _error(values: Doubles) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))
