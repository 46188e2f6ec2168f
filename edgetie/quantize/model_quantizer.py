"""Quantize a bundle's models: preprocess them once, then quantize them as often as needed."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.errors import BundleError, QuantizeError
from edgetie.graph.matching import operator
from edgetie.graph.model_files import read_uncached
from edgetie.passes.base import run_passes
from edgetie.passes.fold_constants import FoldConstants
from edgetie.passes.gemm_to_matmul import GemmToMatMul
from edgetie.passes.remove_flatten_reshapes import RemoveFlattenReshapes
from edgetie.quantize.calibration.activation_ranges import find_activation_ranges
from edgetie.quantize.calibration.layerwise_run import CalibrationInput
from edgetie.quantize.formats.float16 import to_float16
from edgetie.quantize.formats.qdq import LinearOpRanges
from edgetie.quantize.formats.scheme_formats import Ranges, weight_formats
from edgetie.quantize.formats.toggle import ToggleFormat
from edgetie.quantize.formats.weight_format import WeightFormat
from edgetie.quantize.layer_roles import weights_with_roles
from edgetie.quantize.preprocess.adapter_inputs import restore_defaults
from edgetie.quantize.preprocess.preprocess import PreprocessReport, preprocess_model
from edgetie.quantize.quantize_weights import QuantizeWeightsPass
from edgetie.quantize.weights.array_spill import ArraySpill
from edgetie.quantize.weights.linear_op import LinearOp
from edgetie.runtime.memory import release_heap
from edgetie.targets import Scheme
from edgetie.ties.groups import TieGroup


@dataclass(frozen=True)
class QuantizedModels:
    """The result of a quantization.

    Attributes:
        same: initializers that share the bytes of others.
        linear_initializers: of each model, names of the initializers of each quantized weight that
            is not an embedding, by the weight's name.
        embeddings: of each model, names of the quantized embeddings.
        skipped: weights that stayed in floating point, and why.
        dequantized: quantized weights that nodes read as a whole, and the operators of these.
        float_bytes: bytes of the weights that stayed in floating point.
        quantized_bytes: bytes that the others had in float32.
    """

    models: dict[str, ir.Model]
    same: dict[ir.Value, ir.Value]
    linear_initializers: dict[str, dict[str, list[str]]]
    embeddings: dict[str, list[str]]
    block_sizes: dict[str, int]
    skipped: list[str]
    dequantized: dict[str, str]
    float_bytes: int
    quantized_bytes: int

    @property
    def float_share(self) -> float:
        """The share of the weights' bytes that stayed in floating point."""
        return self.float_bytes / max(1, self.float_bytes + self.quantized_bytes)


class ModelQuantizer:
    """The float models of a bundle, and how their weights are quantized.

    Args:
        scheme: the quantization scheme.
        bundle: what the models are part of.
        models: by file name, in the bundle's order; :meth:`preprocess` changes them.
        ties: of each model, verified after each pass.
        shared: names of weights that several models read. Preprocessing does not change them.

    Attributes:
        reports: what preprocessing did to each model.
    """

    def __init__(
        self,
        scheme: Scheme,
        bundle: Bundle,
        models: Mapping[str, ir.Model],
        ties: Mapping[str, Sequence[TieGroup]],
        shared: Collection[str] = (),
    ) -> None:
        self.scheme, self.bundle, self.models = scheme, bundle, models
        self.reports = {file: PreprocessReport() for file in models}
        self._ties, self._shared = ties, shared
        self._shared_linear = {
            name
            for name in shared
            for model in models.values()
            if (value := model.graph.initializers.get(name)) is not None
            and any(operator(node) != "Gather" for node, _ in value.uses())
        }
        self._ranges: dict[str, Ranges] = {file: {} for file in models}
        self._higher_precision: dict[str, set[str]] = {file: set() for file in models}

    def preprocess(self, inputs: CalibrationInput, spill: ArraySpill, calibrator: str) -> None:
        """Calibrate, smooth and rotate the models in place.

        Args:
            inputs: what to calibrate on.
            spill: where Hessians wait.
            calibrator: how ranges are found if the scheme has static scales.

        Raises:
            QuantizeError: if the scheme has static scales and a model cannot be run.
        """
        for (file, model), path in zip(self.models.items(), self.bundle.model_paths, strict=True):
            read_uncached(model)
            formats = weight_formats(self.scheme)
            if formats is None:
                self.reports[file] = PreprocessReport(note="nothing: there is nothing to round")
                restore_defaults(model)
                continue
            run_passes(model, self._ties[file], [GemmToMatMul(), RemoveFlattenReshapes()])
            roles = self.scheme.higher_precision
            self._higher_precision[file] = weights_with_roles(model.graph, roles)
            self.reports[file] = preprocess_model(
                model,
                self._ties[file],
                self.bundle,
                path,
                inputs,
                partial(_format_of, formats, self._higher_precision[file]),
                spill,
                fixed=self._shared,
            )
            if self.scheme.activation_bits:
                self._ranges[file] = self._find_ranges(file, path, inputs, calibrator)
            restore_defaults(model)
        release_heap()

    def _find_ranges(
        self, file: str, path: Path, inputs: CalibrationInput, calibrator: str
    ) -> Ranges:
        """Find the input and output ranges of each linear operator, by its weight's name."""
        report = self.reports[file]
        if not report.transforms:
            raise QuantizeError(
                f"{path}: ranges of its activations are not known ({report.note}); "
                "choose a scheme without them"
            )
        has_16_bits = self.scheme.activation_bits > 8
        weights = {
            name: {str(each.weight.name): each.read_weight for each in linear_ops}
            for name, linear_ops in report.linear_ops.items()
            if has_16_bits
        }
        method = "minmax" if has_16_bits else calibrator  # 16 bits need not cut anything off
        ranges = find_activation_ranges(
            self.bundle, path, report.transforms, inputs, method, weights
        )
        return {
            str(each.weight.name): LinearOpRanges(ranges[name], ranges.get(str(each.weight.name)))
            for name, linear_ops in report.linear_ops.items()
            for each in linear_ops
        }

    @property
    def has_higher_precision(self) -> bool:
        """Whether single weights can have a higher precision than the scheme's."""
        formats = weight_formats(self.scheme)
        return formats is not None and formats[1].higher_precision() is not None

    def quantize(
        self,
        float_weights: Collection[str] = (),
        higher_precision: Collection[str] = (),
        *,
        copy: bool = False,
    ) -> QuantizedModels:
        """Quantize all weights except ``float_weights``.

        Args:
            float_weights: names of weights that stay in floating point.
            higher_precision: names of weights that get a higher precision, besides the scheme's.
            copy: quantize a copy, so that this can be called again.

        Raises:
            QuantizeError: if there is nothing to quantize.
        """
        models: dict[str, ir.Model] = {}
        passes: dict[str, QuantizeWeightsPass] = {}
        for file, model in self.models.items():
            models[file] = copy_model(model) if copy else model
            formats = weight_formats(self.scheme, self._ranges[file])
            if formats is not None:
                passes[file] = self._weights_pass(file, *formats, float_weights, higher_precision)
                run_passes(models[file], [], [passes[file]])
            if self.scheme.is_folded or self.scheme.float16:
                try:
                    run_passes(models[file], [], [FoldConstants()])
                except BundleError as error:
                    raise BundleError(f"{file}: {error.message}") from error
            if self.scheme.float16:
                models[file] = to_float16(models[file])
        skipped = [note for each in passes.values() for note in each.skipped]
        if passes and not any(each.changed for each in passes.values()):
            reasons = f" ({'; '.join(skipped)})" if skipped else ""
            raise QuantizeError(f"no MatMul or Gather over a constant fp32 matrix{reasons}")
        same = same_bytes(models, passes, self._shared)
        parts = {
            file: {part for parts in each.initializers.values() for part in parts}
            for file, each in passes.items()
        }
        return QuantizedModels(
            models,
            same,
            {file: each.linear_initializers for file, each in passes.items()},
            {file: each.embeddings for file, each in passes.items()},
            dict(sum((each.block_sizes for each in passes.values()), Counter())),
            skipped,
            {name: users for each in passes.values() for name, users in each.dequantized.items()},
            _float_bytes(models, parts, same),
            sum(each.float_bytes for each in passes.values()),
        )

    def toggle_graph(
        self, names: Sequence[str], float_tensors: Mapping[str, Mapping[str, ir.TensorProtocol]]
    ) -> dict[str, ir.Model]:
        """Make models in which one weight at a time is quantized, chosen by an input when they run
        (:mod:`edgetie.quantize.formats.toggle`): one of ``names``, whose float tensors are given.
        """
        models = {}
        for file, model in self.models.items():
            models[file] = copy_model(model)
            formats = weight_formats(self.scheme, self._ranges[file])
            assert formats is not None
            toggle = ToggleFormat(formats[1], names, float_tensors[file])
            others = {*model.graph.initializers} - {*names}
            run_passes(models[file], [], [self._weights_pass(file, formats[0], toggle, others)])
        return models

    def _weights_pass(
        self,
        file: str,
        embedding_format: WeightFormat,
        linear_format: WeightFormat,
        float_weights: Collection[str],
        higher_precision: Collection[str] = (),
    ) -> QuantizeWeightsPass:
        return QuantizeWeightsPass(
            embedding_format,
            linear_format,
            self.reports[file].hessians,
            float_weights,
            {*higher_precision, *self._higher_precision[file]},
            self.reports[file].massive,
            self._shared_linear,
        )


def _format_of(
    formats: tuple[WeightFormat, WeightFormat],
    higher_precision: Collection[str],
    linear_op: LinearOp,
) -> WeightFormat:
    """Return the format of a weight: those that are not transposed are stored like embeddings."""
    embedding_format, linear_format = formats
    if not linear_op.transposed:
        return embedding_format
    is_higher = linear_op.weight.name in higher_precision
    return (linear_format.higher_precision() if is_higher else None) or linear_format


def copy_model(model: ir.Model) -> ir.Model:
    model.graph.sort()  # copies are made node by node
    return model.clone()


def same_bytes(
    models: Mapping[str, ir.Model],
    passes: Mapping[str, QuantizeWeightsPass],
    shared: Collection[str],
) -> dict[ir.Value, ir.Value]:
    """Find initializers that share bytes: aliases, and parts of weights that several models read,
    which preprocessing does not change.
    """
    same: dict[ir.Value, ir.Value] = {}
    of_all_models: dict[str, ir.Value] = {}
    shared_parts = {*shared}.union(
        *(each.initializers.get(name, ()) for each in passes.values() for name in shared)
    )
    for file, model in models.items():
        aliases = passes[file].aliases if file in passes else {}
        of_model: dict[str, ir.Value] = {}
        initializers = sorted(model.graph.initializers.items(), key=lambda item: item[0] in aliases)
        for name, value in initializers:
            name = aliases.get(name, name)
            owners = of_all_models if name in shared_parts else of_model
            first = owners.setdefault(name, value)
            if first is not value and _bytes(first) == _bytes(value):
                same[value] = first
    return same


def _float_bytes(
    models: Mapping[str, ir.Model],
    parts: Mapping[str, Collection[str]],
    same: Collection[ir.Value],
) -> int:
    """Count the bytes of float initializers, without those of quantized weights."""
    return sum(
        value.const_value.nbytes
        for file, model in models.items()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype.is_floating_point()
        and name not in parts.get(file, ())
        and value not in same
    )


def _bytes(value: ir.Value) -> int | None:
    return value.const_value.nbytes if value.const_value is not None else None
