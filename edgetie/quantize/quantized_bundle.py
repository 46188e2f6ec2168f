"""What a quantization results in: models, checks of their ties, and the bundle's other files."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgetie.assemble import copy_settings
from edgetie.bundle.bundle import Bundle
from edgetie.bundle.manifest import Manifest, describe_tensors
from edgetie.bundle.names import DATA, ENCODER, MANIFEST
from edgetie.errors import QuantizeError
from edgetie.graph.model_files import load_model
from edgetie.harness.accuracy.metrics import PredictionMetrics
from edgetie.quantize.mixed_precision.search import SearchSummary
from edgetie.quantize.mixed_precision.sensitivity import Cost, Precision
from edgetie.quantize.model_quantizer import QuantizedModels
from edgetie.quantize.preprocess.preprocess import PreprocessReport
from edgetie.quantize.smaller_scheme import SmallerScheme
from edgetie.quantize.source_models import SourceModels
from edgetie.targets import Scheme
from edgetie.ties.groups import TieGroup, find_shared_ties, ties_of_file, verify_ties


@dataclass(frozen=True)
class QuantizationResult:
    """Quantized models; the cost of each weight and the accuracy, if they were measured."""

    quantized: QuantizedModels
    costs: Sequence[Cost] = ()
    metrics: PredictionMetrics | None = None
    search: SearchSummary | None = None
    smaller_scheme: SmallerScheme | None = None

    @property
    def models(self) -> dict[str, ir.Model]:
        return self.quantized.models

    @property
    def float_weights(self) -> list[str]:
        """The weights that stayed in floating point, and why."""
        return [*self.quantized.skipped, *self.with_precision(Precision.FLOAT)]

    def with_precision(self, precision: Precision) -> list[str]:
        """List the weights of a precision, and what quantizing them would cost, if measured."""
        return [
            c.name if math.isnan(c.kl) else f"{c.name}: costs {c.kl:.1e}"
            for c in self.costs
            if c.precision is precision
        ]

    @property
    def is_larger_than_8_bits(self) -> bool:
        """Whether the weights that limits keep in floating point outweigh the bits saved."""
        if self.search is None or self.search.stopped:
            return False
        of_all = self.quantized.float_bytes + self.quantized.quantized_bytes
        written = sum(
            value.const_value.nbytes
            for model in self.models.values()
            for value in model.graph.initializers.values()
            if value.const_value is not None and value not in self.quantized.same
        )
        return written > of_all / 4  # from float32 to 8 bits


def verify_tied_weights(
    result: QuantizationResult, source: SourceModels, directory: Path, *, require_int8: bool
) -> list[TieGroup]:
    """Check that tied weights are tied in the files. Return their groups.

    Args:
        result: the models in ``directory``.
        source: the float models.
        directory: the written files.
        require_int8: refuse tied weights that nodes read in floating point.

    Raises:
        QuantizeError: if a weight is not tied any more, or read in floating point.
        TieError: if a file does not tie a weight that its model ties.
    """
    ties = find_shared_ties(result.models, source.tied_parameters)
    names = {group.name for group in ties}
    lost = ", ".join(name for name in source.tied_names if name not in names)
    if lost:
        raise QuantizeError(f"{lost}: quantizing would untie it; nothing is written")
    for file in result.models:
        verify_ties(load_model(directory / file), ties_of_file(ties, file), f"the file {file}")
    if require_int8:
        _require_int8(ties, result)
    return ties


def _require_int8(ties: Sequence[TieGroup], result: QuantizationResult) -> None:
    dequantized = result.quantized.dequantized
    for group in ties:
        if group.name in dequantized:
            reason = f"{dequantized[group.name]} would read it dequantized as a whole"
        elif ir.DataType[group.dtype].is_floating_point():
            notes = [n for n in result.float_weights if n.startswith(f"{group.name}: ")]
            reason = f"stays in floating point ({', '.join(notes) or group.dtype})"
        else:
            continue
        raise QuantizeError(
            f"the tied weight {group.name}: {reason}; leave it out to allow that",
            parameter="require_tied_int8",
            value=True,
        )


def copy_other_files(bundle: Bundle, directory: Path) -> None:
    """Copy configuration and tokenizer files, also those next to a bare ONNX file."""
    if bundle.is_bare:
        copy_settings(bundle.directory, directory)
        return
    for path in bundle.files:
        if path.suffix != ".onnx" and path.name not in (DATA, MANIFEST):
            shutil.copyfile(path, directory / path.name)


def make_manifest(
    source: SourceModels,
    scheme: Scheme,
    result: QuantizationResult,
    ties: list[TieGroup],
    preprocessing: Mapping[str, Any],
) -> Manifest:
    """Make the manifest of a quantized bundle.

    Args:
        source: the float models.
        scheme: how they were quantized.
        result: the quantized models.
        ties: their tie groups.
        preprocessing: the entries of :func:`describe_preprocessing`.
    """
    *_, last = result.models.values()
    inputs, outputs = describe_tensors(last.graph.inputs), describe_tensors(last.graph.outputs)
    manifest = source.make_manifest()
    manifest.signature = replace(manifest.signature, inputs=inputs, outputs=outputs)
    if manifest.encoder is not None and ENCODER in result.models:
        graph = result.models[ENCODER].graph
        inputs, outputs = describe_tensors(graph.inputs), describe_tensors(graph.outputs)
        manifest.encoder = replace(manifest.encoder, inputs=inputs, outputs=outputs)
    manifest.ties, manifest.accuracy = ties, {}
    manifest.precision, manifest.weights_in_memory = scheme.precision, scheme.weights_in_memory
    metrics = result.metrics
    manifest.quantization = {
        "scheme": scheme.name,
        "blocks": result.quantized.block_sizes,
        "kept": result.float_weights,
        "dequantized": result.quantized.dequantized,
        "float_share": result.quantized.float_share,
        "finer": result.with_precision(Precision.HIGHER),
        "measured": {}
        if metrics is None
        else {
            "positions": metrics.predictions,
            "kl": metrics.mean_kl_divergence,
            "perplexity_increase": metrics.perplexity_increase,
            "top1_agreement": metrics.top1_agreement,
        },
        "folded": scheme.is_folded,
        **preprocessing,
    }
    return manifest


def describe_preprocessing(
    reports: Mapping[str, PreprocessReport], calibration: str
) -> dict[str, Any]:
    """Describe what calibration and preprocessing did to the models, for the manifest."""
    notes = dict.fromkeys(report.note for report in reports.values() if report.note)
    return {
        "calibration": "; ".join(notes) or calibration,
        "smoothed": sum(report.smoothed for report in reports.values()),
        "rotated": sum(report.rotated for report in reports.values()),
        "compensated": sum(len(report.hessians) for report in reports.values()),
        "massive": [name for report in reports.values() for name in report.massive],
    }
