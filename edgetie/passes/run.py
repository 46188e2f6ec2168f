"""Run graph passes in order, time them, and name the one that breaks a tie."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgetie.errors import EdgetieError
from edgetie.passes.base import GraphPass
from edgetie.ties.groups import TieGroup


@dataclass(frozen=True)
class PassReport:
    """How many places a pass changed, how long it took, and what it skipped and why."""

    name: str
    changed: int
    seconds: float
    skipped: tuple[str, ...]


def run_passes(
    model: ir.Model, ties: Sequence[TieGroup], passes: Sequence[GraphPass]
) -> list[PassReport]:
    """Run ``passes`` on ``model`` in place. The groups in ``ties`` must hold after each.

    Raises:
        TieError: naming the pass and the weight.
    """
    reports = []
    for step in passes:
        start = time.perf_counter()
        step.ties = ties
        try:
            step(model)
        except (ir.passes.PassError, ir.passes.InvariantError) as error:
            if isinstance(error.__cause__, EdgetieError):
                raise error.__cause__ from None
            raise
        seconds = time.perf_counter() - start
        reports.append(PassReport(step.name, step.changed, seconds, tuple(step.skipped)))
    return reports
