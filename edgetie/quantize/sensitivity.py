"""What 8 bits cost, weight by weight, and which weights stay in floating point for it.

The cost of a weight is the divergence it adds when it alone is rounded, the tied table apart: the
mean over positions of KL(float || int8) of the next token. That is measured, on text that was not
calibrated on. Costs add up well enough to choose by: those with the highest cost a byte are kept
until the sum fits, and what was chosen is measured again, on the whole of the text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from edgetie.bundle import Bundle
from edgetie.errors import QuantizeError
from edgetie.external_data import write_models
from edgetie.harness.metrics import PredictionErrors
from edgetie.harness.references import BundleReference
from edgetie.harness.samples import scored, too_short
from edgetie.harness.thresholds import Thresholds
from edgetie.quantize.calibrate import Text
from edgetie.quantize.rounding import RoundedModels, Rounding
from edgetie.report.progress import Progress, Stages

_WINDOW = 256
_RANKED_ON = 2  # windows; their float logits stay in memory
_STEP = 0.5  # share of what is still too much that is cut before measuring again
_TINY = 1e-30
_ALIGN = 64
CODES, FLOATS = "codes.data", "floats.data"
"""Where weights lie while some may yet be taken back."""

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
    """A quantized bundle, any of whose products can be had in floating point.

    Args:
        bundle: whose model files are replaced as often as something is tried.
        rounding: what makes its graphs.

    Attributes:
        bytes: what keeping a weight in floating point adds, by its name. A weight of several graphs
            is left out: they would part.
    """

    def __init__(self, bundle: Bundle, rounding: Rounding) -> None:
        self.bundle, self.rounding = bundle, rounding
        first = rounding.apply(again=True)
        write_models(first.models, bundle.directory, data=CODES, same=first.same)
        self._codes = {
            file: {str(v.name): v.const_value for v in model.graph.initializers.values()}
            for file, model in first.models.items()
        }
        count = Counter(name for names in first.layers.values() for name in names)
        self._floats: dict[str, dict[str, ir.TensorProtocol]] = {}
        self.bytes: dict[str, int] = {}
        with (bundle.directory / FLOATS).open("wb") as stream:
            for file, names in first.layers.items():
                self._floats[file] = {}
                for name in (name for name in names if count[name] == 1):
                    tensor = rounding.models[file].graph.initializers[name].const_value
                    assert tensor is not None
                    self._floats[file][name] = _written(stream, name, tensor)
                    codes = self._codes[file].get(name)
                    self.bytes[name] = tensor.nbytes - (codes.nbytes if codes is not None else 0)

    def write(self, kept: Collection[str]) -> RoundedModels:
        """Replace the bundle's model files, some weights in floating point."""
        made = self.rounding.apply(kept, again=True)
        for file, model in made.models.items():
            for name, value in model.graph.initializers.items():
                known = [self._floats[file].get(name), self._codes[file].get(name)]
                for tensor in known:
                    now = value.const_value
                    if tensor is not None and now is not None and tensor.dtype == now.dtype:
                        value.const_value = tensor
                        break
            ir.save(model, self.bundle.directory / file)
        return made


class Meter:
    """Measures a mixture against the float model, as :func:`~edgetie.harness.accuracy.check` does.

    Args:
        float_bundle: what it is held against.
        text: nothing was calibrated on its rest.
    """

    def __init__(self, float_bundle: Bundle, text: Text) -> None:
        self._reference = BundleReference(float_bundle)
        window = min(_WINDOW, self._reference.longest or _WINDOW)
        self._windows = list(
            scored(float_bundle.task, text.rest, window, text.prefix, text.suffix, text.mask)
        )
        if too_short(self._windows, float_bundle.task, text.mask):
            raise QuantizeError(
                f"the calibration text has {len(text.rest)} tokens behind those calibrated on, too "
                "few to hold limits against; give a longer one"
            )
        self._known = [self._reference.logits(ids[None]) for ids, _ in self._windows[:_RANKED_ON]]

    def divergence(self, bundle: Bundle) -> float:
        """On the first windows, which is quick."""
        candidate, errors = BundleReference(bundle), PredictionErrors()
        for (ids, targets), known in zip(self._windows, self._known, strict=False):
            errors.add(known, candidate.logits(ids[None]), targets)
        return errors.mean_kl_divergence

    def whole(self, bundle: Bundle) -> PredictionErrors:
        """On all of them."""
        candidate, errors = BundleReference(bundle), PredictionErrors()
        for ids, targets in self._windows:
            first, second = (m.logits(ids[None]) for m in (self._reference, candidate))
            errors.add(first, second, targets)
        return errors


def fit(
    limits: Thresholds, rounding: Rounding, directory: Path, meter: Meter, progress: Stages
) -> tuple[RoundedModels, list[Cost], PredictionErrors]:
    """Round all weights but those that cost too much for limits to hold.

    Args:
        limits: what must hold.
        rounding: what rounds them.
        directory: one's own; codes and floats lie there for a while, the models' to the end.
        meter: measures a bundle.
        progress: told how far it is.

    Returns:
        The models, their weights in the directory; the cost of every product, if not all could be
        rounded; and what was measured in the end.

    Raises:
        QuantizeError: if the limits do not even hold with all products in floating point.
    """
    names = list(rounding.models)
    mixture = Mixture(Bundle(directory, directory / names[-1], rounding.manifest), rounding)
    progress.stage("measure")
    made = mixture.write([])
    errors = meter.whole(mixture.bundle)
    costs: list[Cost] = []
    if _failures(limits, errors):
        costs = measure_costs(mixture, meter, progress)
        costs, errors = _keep(limits, mixture, meter, costs, errors)
        made = mixture.write({cost.name for cost in costs if cost.kept})
    return made, costs, errors


def measure_costs(mixture: Mixture, meter: Meter, progress: Progress) -> list[Cost]:
    """The cost of every product, in graph order."""
    names = list(mixture.bytes)
    mixture.write(names)
    table = meter.divergence(mixture.bundle)
    costs = []
    for index, name in enumerate(names):
        progress.advance(index, len(names))
        mixture.write([other for other in names if other != name])
        costs.append(Cost(name, meter.divergence(mixture.bundle) - table, mixture.bytes[name]))
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
        mixture.write(kept)
        errors = meter.whole(mixture.bundle)
        if not _failures(limits, errors):
            return [replace(cost, kept=cost.name in kept) for cost in costs], errors
        wanted = removed + max(
            0.0, _STEP * (1 - _share(limits, errors)) * errors.mean_kl_divergence
        )
    where = "with every product in floating point, from the tied table alone"
    raise QuantizeError(_broken(limits, errors, where, "allow more"))


def require_kept(limits: Thresholds, errors: PredictionErrors, where: str, remedy: str) -> None:
    """Refuse what breaks a limit.

    Raises:
        QuantizeError: naming each that is broken.
    """
    if _failures(limits, errors):
        raise QuantizeError(_broken(limits, errors, where, remedy))


def _broken(limits: Thresholds, errors: PredictionErrors, where: str, remedy: str) -> str:
    found = "; ".join(_failures(limits, errors).values())
    return f"the limits cannot be kept: {where}, {found}; {remedy}"


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


def _written(stream: BinaryIO, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    """The same tensor in a file."""
    path = Path(stream.name)
    stream.write(bytes(-stream.tell() % _ALIGN))
    start = stream.tell()
    stream.write(np.ascontiguousarray(tensor.numpy()).data)
    return ir.ExternalTensor(
        path.name,
        start,
        tensor.nbytes,
        tensor.dtype,
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        base_dir=path.parent,
    )
