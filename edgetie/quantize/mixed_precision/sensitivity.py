"""Measure what quantizing each weight costs.

The cost is the divergence that quantizing a weight alone adds: KL(float || quantized) of the next
token, mean over positions of text that was not calibrated on. Costs add up well enough to choose by
them.
"""

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from edgetie.harness.accuracy.references import BundleReference
from edgetie.progress import Progress
from edgetie.quantize.formats.toggle import TOGGLE_INPUT
from edgetie.quantize.mixed_precision.accuracy_meter import AccuracyMeter
from edgetie.quantize.mixed_precision.candidates import MixedPrecisionCandidates


class Precision(Enum):
    """The precision of a weight in a mixed-precision model."""

    SCHEME = "as in the scheme"
    HIGHER = "higher"
    FLOAT = "floating point"


@dataclass(frozen=True)
class Cost:
    """What quantizing a weight costs.

    Attributes:
        kl: the divergence it adds, in nats a token; NaN if it was not measured.
        float_bytes: bytes that keeping it in floating point adds.
        higher_precision_bytes: bytes that its higher precision adds; 0 if the scheme has none.
        precision: the precision that it got.
    """

    name: str
    kl: float
    float_bytes: int
    higher_precision_bytes: int = 0
    precision: Precision = Precision.SCHEME

    @property
    def added_bytes(self) -> int:
        """Bytes that its precision adds."""
        added = {Precision.FLOAT: self.float_bytes, Precision.HIGHER: self.higher_precision_bytes}
        return added.get(self.precision, 0)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "name": self.name,
            "kl": self.kl,
            "bytes": self.float_bytes,
            "finer_bytes": self.higher_precision_bytes,
            "kept": self.precision is Precision.FLOAT,
            "finer": self.precision is Precision.HIGHER,
        }


def unmeasured_costs(candidates: MixedPrecisionCandidates) -> list[Cost]:
    """List the weights, in graph order, before their costs are known."""
    higher = candidates.higher_precision_bytes
    return [
        Cost(name, math.nan, float_bytes, higher.get(name, 0))
        for name, float_bytes in candidates.float_bytes.items()
    ]


def measure_costs(
    candidates: MixedPrecisionCandidates,
    meter: AccuracyMeter,
    progress: Progress,
    deadline: float = math.inf,
) -> list[Cost] | None:
    """Measure the cost of quantizing each weight, in graph order.

    Args:
        candidates: their weights are written in all precisions.
        meter: measures a bundle.
        progress: told how many weights are measured.
        deadline: on the clock of :func:`time.perf_counter`. ``None`` is returned after it.
    """
    candidates.write_toggle_graph()
    model = BundleReference(candidates.bundle)
    costs = unmeasured_costs(candidates)
    for index, cost in enumerate(costs):
        if time.perf_counter() > deadline:
            return None
        progress.advance(index, len(costs))
        model.choices = {TOGGLE_INPUT: np.array(index)}
        costs[index] = replace(cost, kl=meter.divergence(model))
    return costs


def names_by_precision(costs: Collection[Cost]) -> tuple[set[str], set[str]]:
    """Return the names of the float and of the higher-precision weights."""
    float_weights = {cost.name for cost in costs if cost.precision is Precision.FLOAT}
    return float_weights, {cost.name for cost in costs if cost.precision is Precision.HIGHER}
