"""What 8 bits cost, weight by weight, and which weights stay in floating point for it.

The cost of a weight is the divergence it adds when it alone is rounded, the tied table apart: the
mean over positions of KL(float || int8) of the next token. That is measured, on text that was not
calibrated on. Costs add up well enough to choose by: those with the highest cost a byte are kept
until the sum fits, and what was chosen is measured again, on the whole of the text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.bundle import Bundle
from edgetie.errors import QuantizeError
from edgetie.harness.metrics import PredictionErrors
from edgetie.harness.references import BundleReference
from edgetie.harness.thresholds import Thresholds
from edgetie.passes import run_passes
from edgetie.quantize.restore import Restore, quantized_products, stored_bytes
from edgetie.report.progress import Progress

_WINDOW = 256
_RANKED_ON = 2  # windows; their float logits stay in memory
_STEP = 0.5  # share of what is still too much that is cut before measuring again
_TINY = 1e-30
_FLOATS = "floats.data"
_ALIGN = 64
CODES = "codes.data"
"""Where the weights lie while some may yet be taken back."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Cost:
    """What rounding a weight costs.

    Attributes:
        name: of the weight.
        kl: the divergence it adds, in nats a token; less than nothing where it happens to help.
        bytes: that keeping it in floating point adds.
        kept: whether it was.
    """

    name: str
    kl: float
    bytes: int
    kept: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Mixture:
    """A bundle of 8-bit graphs, any of whose products can be had in floating point.

    Args:
        bundle: whose model files are replaced as often as something is tried.
        models: its 8-bit graphs by file name, their weights written.
        floats: the same for the float weights, by graph and name. A weight of several graphs is
            left out: they would part.
    """

    def __init__(
        self,
        bundle: Bundle,
        models: Mapping[str, ir.Model],
        floats: Mapping[str, Mapping[str, ir.TensorProtocol]],
    ) -> None:
        self.bundle = bundle
        self.models = models
        self.floats = floats
        count = Counter(name for tensors in floats.values() for name in tensors)
        self.bytes: dict[str, int] = {}
        for file, model in models.items():
            model.graph.sort()  # copies are made node by node
            for name, nodes in quantized_products(model).items():
                if name in floats[file] and count[name] == 1:
                    self.bytes[name] = floats[file][name].nbytes - stored_bytes(nodes[0])

    def write(self, kept: Collection[str]) -> Bundle:
        """The bundle, with some weights in floating point."""
        for file, model in self.models.items():
            copy = model.clone()
            run_passes(copy, [], [Restore(kept, self.floats[file])])
            ir.save(copy, self.bundle.directory / file)
        return self.bundle


class Meter:
    """Measures a mixture against the float model.

    Args:
        float_bundle: what it is held against.
        tokens: a text that nothing was calibrated on.
    """

    def __init__(self, float_bundle: Bundle, tokens: Sequence[int]) -> None:
        self._reference = BundleReference(float_bundle)
        window = min(_WINDOW, self._reference.longest or _WINDOW)
        self._windows = [
            np.array(tokens[start : start + window], np.int64)
            for start in range(0, len(tokens), window)
        ]
        self._shift = 0 if self._reference.session.cross else 1
        self._known = [self._reference.logits(w[None]) for w in self._windows[:_RANKED_ON]]

    def divergence(self, bundle: Bundle) -> float:
        """On the first windows, which is quick."""
        candidate, errors = BundleReference(bundle), PredictionErrors()
        for window, known in zip(self._windows, self._known, strict=False):
            errors.add(known, candidate.logits(window[None]), self._targets(window))
        return errors.mean_kl_divergence

    def whole(self, bundle: Bundle) -> PredictionErrors:
        """On all of them."""
        candidate, errors = BundleReference(bundle), PredictionErrors()
        for window in self._windows:
            first, second = (m.logits(window[None]) for m in (self._reference, candidate))
            errors.add(first, second, self._targets(window))
        return errors

    def _targets(self, window: Array) -> Array:
        return np.append(window[self._shift :], [-1] * self._shift).astype(np.int64)


def fit(
    limits: Thresholds,
    bundle: Bundle,
    models: Mapping[str, ir.Model],
    floats: Mapping[str, Mapping[str, ir.TensorProtocol]],
    meter: Meter,
    progress: Progress,
) -> tuple[list[Cost], PredictionErrors]:
    """Take products of 8-bit graphs back to floating point, in place, until limits hold.

    Args:
        limits: what must hold.
        bundle: in a directory of one's own; its model files are replaced, and float weights lie
            there for a while.
        models: its graphs by file name, their weights written.
        floats: float weights by graph and name.
        meter: measures the bundle.
        progress: told how far it is.

    Returns:
        The cost of every product, if not all could stay in 8 bits, and what was measured in the
        end.

    Raises:
        QuantizeError: if the limits do not even hold with all products in floating point.
    """
    with _written(floats, bundle.directory / _FLOATS) as tensors:
        mixture = Mixture(bundle, models, tensors)
        errors = meter.whole(mixture.write([]))
        costs: list[Cost] = []
        if _failures(limits, errors):
            costs = measure_costs(mixture, meter, progress)
            costs, errors = _keep(limits, mixture, meter, costs, errors)
    kept = {cost.name for cost in costs if cost.kept}
    for file, model in models.items():
        run_passes(model, [], [Restore(kept, floats[file])])
    return costs, errors


def measure_costs(mixture: Mixture, meter: Meter, progress: Progress) -> list[Cost]:
    """The cost of every product, in graph order."""
    names = list(mixture.bytes)
    table = meter.divergence(mixture.write(names))
    costs = []
    for index, name in enumerate(names):
        progress.advance(index, len(names))
        alone = mixture.write([other for other in names if other != name])
        costs.append(Cost(name, meter.divergence(alone) - table, mixture.bytes[name]))
    return costs


def _keep(
    limits: Thresholds, mixture: Mixture, meter: Meter, costs: list[Cost], errors: PredictionErrors
) -> tuple[list[Cost], PredictionErrors]:
    """Mark what is kept, the highest cost a byte first; ``errors`` are those of keeping nothing."""
    order = sorted(costs, key=lambda cost: cost.kl / max(1, cost.bytes), reverse=True)
    total = errors.mean_kl_divergence
    wanted = total - _share(limits, errors) * total  # divergence to get rid of
    scale = total / max(sum(cost.kl for cost in costs), total)
    removed, kept = 0.0, set[str]()
    for index, cost in enumerate(order):
        kept.add(cost.name)
        removed += cost.kl * scale
        if removed < wanted and index < len(order) - 1:
            continue
        errors = meter.whole(mixture.write(kept))
        if not _failures(limits, errors):
            return [replace(cost, kept=cost.name in kept) for cost in costs], errors
        wanted = removed + max(
            0.0, _STEP * (1 - _share(limits, errors)) * errors.mean_kl_divergence
        )
    raise QuantizeError(
        "the limits cannot be kept: with every product in floating point, from the tied table "
        f"alone, {'; '.join(_failures(limits, errors).values())}; allow more"
    )


def _failures(limits: Thresholds, errors: PredictionErrors) -> dict[str, str]:
    return limits.failures(
        relative_error=math.nan,  # predictions decide, not single logits
        mean_kl_divergence=errors.mean_kl_divergence,
        top1_agreement=errors.top1_agreement,
        top1_agreement_error=errors.top1_agreement_error,
        perplexity_increase=errors.perplexity_increase,
        perplexity_increase_error=errors.perplexity_increase_error,
    )


def _share(limits: Thresholds, errors: PredictionErrors) -> float:
    """The share of the present divergence that the limits leave, roughly."""
    shares = [1.0]
    if limits.max_kl is not None:
        shares.append(limits.max_kl / max(errors.mean_kl_divergence, _TINY))
    if limits.max_perplexity_increase is not None:
        shares.append(limits.max_perplexity_increase / max(errors.perplexity_increase, _TINY))
    if limits.min_top1 is not None:  # the number of other tokens grows like the logits' error
        shares.append(((1 - limits.min_top1) / max(1 - errors.top1_agreement, _TINY)) ** 2)
    return max(0.0, min(shares))


@contextmanager
def _written(
    floats: Mapping[str, Mapping[str, ir.TensorProtocol]], path: Path
) -> Iterator[dict[str, dict[str, ir.TensorProtocol]]]:
    """The same tensors in a file, which is gone afterwards."""
    found: dict[str, dict[str, ir.TensorProtocol]] = {file: {} for file in floats}
    with path.open("wb") as stream:
        for file, tensors in floats.items():
            for name, tensor in tensors.items():
                stream.write(bytes(-stream.tell() % _ALIGN))
                found[file][name] = ir.ExternalTensor(
                    path.name,
                    stream.tell(),
                    tensor.nbytes,
                    tensor.dtype,
                    name=name,
                    shape=ir.Shape(tensor.shape.numpy()),
                    base_dir=path.parent,
                )
                stream.write(np.ascontiguousarray(tensor.numpy()).data)
    try:
        yield found
    finally:
        path.unlink()
