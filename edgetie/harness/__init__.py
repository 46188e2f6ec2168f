"""Measuring bundles: accuracy against a reference, latency, memory, ties.

Needs no torch, transformers or matplotlib; torch is imported when a torch model is the reference.
Names are imported when they are first used, so a measuring process loads only what it measures.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetie.harness.accuracy import AccuracyReport, check
    from edgetie.harness.latency import LatencyReport, bench
    from edgetie.harness.proof import TieStatus, tie_status
    from edgetie.harness.references import (
        BundleReference,
        Reference,
        TorchReference,
        resolve_reference,
    )
    from edgetie.harness.thresholds import Thresholds, default_thresholds

_HOME = {
    "AccuracyReport": "accuracy",
    "BundleReference": "references",
    "LatencyReport": "latency",
    "Reference": "references",
    "Thresholds": "thresholds",
    "TieStatus": "proof",
    "TorchReference": "references",
    "bench": "latency",
    "check": "accuracy",
    "default_thresholds": "thresholds",
    "resolve_reference": "references",
    "tie_status": "proof",
}

__all__ = [
    "AccuracyReport",
    "BundleReference",
    "LatencyReport",
    "Reference",
    "Thresholds",
    "TieStatus",
    "TorchReference",
    "bench",
    "check",
    "default_thresholds",
    "resolve_reference",
    "tie_status",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
