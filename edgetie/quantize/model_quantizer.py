"""A model on its way from floats to codes: prepared once, rounded as often as is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.errors import QuantizeError
from edgetie.graph.model_files import read_uncached
from edgetie.graph.operators import operator
from edgetie.passes.fold_constants import FoldConstants
from edgetie.passes.gemm_to_matmul import GemmToMatMul
from edgetie.passes.remove_flatten_reshapes import RemoveFlattenReshapes
from edgetie.passes.run import run_passes
from edgetie.quantize.calibration.activation_ranges import find_activation_ranges
from edgetie.quantize.calibration.layerwise_run import Input
from edgetie.quantize.formats.float16 import to_float16
from edgetie.quantize.formats.qdq import LinearOpRanges
from edgetie.quantize.formats.scheme_formats import Ranges, weight_formats
from edgetie.quantize.formats.toggle import ToggleFormat
from edgetie.quantize.formats.weight_format import WeightFormat
from edgetie.quantize.preprocess.preprocess import PreprocessReport, preprocess_model
from edgetie.quantize.quantize_weights import QuantizeWeightsPass
from edgetie.quantize.weights.array_spill import ArraySpill
from edgetie.quantize.weights.linear_op import LinearOp
from edgetie.runtime.memory import release_heap
from edgetie.targets import Scheme
from edgetie.ties.groups import TieGroup


@dataclass(frozen=True)
class QuantizedModels:
    """What rounding made.

    Attributes:
        models: by file name.
        same: initializers over the bytes of others.
        layers: of each model, names of the initializers of each rounded weight that no rows are
            looked up in, by the weight's name.
        tables: of each model, names of rounded weights that rows are looked up in.
        blocks: how many matrices have which block size.
        skipped: matrices that stayed in floating point, and why.
    """

    models: dict[str, ir.Model]
    same: dict[ir.Value, ir.Value]
    layers: dict[str, dict[str, list[str]]]
    tables: dict[str, list[str]]
    blocks: dict[str, int]
    skipped: list[str]


class ModelQuantizer:
    """Float graphs, smoothed and rotated, and how their matrices are rounded.

    Args:
        scheme: says how.
        bundle: what the models are part of.
        models: by file name, in the order of the bundle's; they are changed in place.
        ties: of each model, verified after each pass.
        given: what to calibrate on.
        store: where what is measured waits.
        shared: names of weights that several models read; they are left as they are.
        calibrator: how ranges are found, where the scheme fixes them.

    Attributes:
        models: the prepared graphs.
        manifest: the bundle's.
        note: why nothing was calibrated, if so.
        smoothed, rotated, compensated: how many activations and matrices.
        massive: matrices whose inputs have massive activations.

    Raises:
        QuantizeError: if ranges are wanted and the model cannot be run.
    """

    def __init__(
        self,
        scheme: Scheme,
        bundle: Bundle,
        models: Mapping[str, ir.Model],
        ties: Mapping[str, Sequence[TieGroup]],
        given: Input,
        store: ArraySpill,
        *,
        shared: Collection[str],
        calibrator: str,
    ) -> None:
        self.scheme, self.models, self._shared = scheme, models, shared
        self._multiplied = {
            name
            for name in shared
            for model in models.values()
            if (value := model.graph.initializers.get(name)) is not None
            and any(operator(node) != "Gather" for node, _ in value.uses())
        }
        self.manifest = bundle.manifest
        self._prepared: dict[str, PreprocessReport] = {}
        self._ranges: dict[str, Ranges] = {}
        for (file, model), path in zip(models.items(), bundle.model_paths, strict=True):
            read_uncached(model)
            self._prepared[file], self._ranges[file] = PreprocessReport(), {}
            if weight_formats(scheme) is not None:
                run_passes(model, ties[file], [GemmToMatMul(), RemoveFlattenReshapes()])
                self._prepare(file, path, bundle, ties[file], given, store, calibrator)
        release_heap()
        every = self._prepared.values()
        self.note = "; ".join(each.note for each in every if each.note)
        if weight_formats(scheme) is None:
            self.note = "nothing: there is nothing to round"
        self.smoothed = sum(each.smoothed for each in every)
        self.rotated = sum(each.rotated for each in every)
        self.gptq_quantize = sum(len(each.grams) for each in every)
        self.massive = [name for each in every for name in each.massive]

    def _prepare(
        self,
        file: str,
        path: Path,
        bundle: Bundle,
        ties: Sequence[TieGroup],
        given: Input,
        store: ArraySpill,
        calibrator: str,
    ) -> None:
        found = preprocess_model(
            self.models[file],
            ties,
            bundle,
            path,
            given,
            self._form,
            store,
            fixed=self._shared,
        )
        self._prepared[file] = found
        if not self.scheme.activation_bits:
            return
        if not found.changes:
            raise QuantizeError(
                f"{path}: ranges of its activations are not known ({found.note}); "
                "choose a scheme without them"
            )
        wide = self.scheme.activation_bits > 8
        products = {
            name: {str(product.weight.name): product.read_weight for product in readers}
            for name, readers in found.readers.items()
            if wide
        }
        method = "minmax" if wide else calibrator  # many codes: none need be cut off
        ranges = find_activation_ranges(bundle, path, found.changes, given, method, products)
        self._ranges[file] = {
            name: LinearOpRanges(ranges[activation], ranges.get(name))
            for activation, readers in found.readers.items()
            for name in (str(each.weight.name) for each in readers)
        }

    def _form(self, product: LinearOp) -> WeightFormat:
        """The form that a product will take."""
        made = weight_formats(self.scheme)
        assert made is not None
        return made[1] if product.transposed else made[0]

    @property
    def higher_precision(self) -> WeightFormat | None:
        """The closer form that single weights can have, if the scheme knows one."""
        made = weight_formats(self.scheme)
        return made[1].higher_precision() if made is not None else None

    def apply(
        self,
        kept: Collection[str] = (),
        higher_precision: Collection[str] = (),
        *,
        again: bool = False,
    ) -> QuantizedModels:
        """Round all matrices but ``kept``.

        Args:
            kept: names of weights that stay in floating point.
            finer: names of weights that take the closer form.
            again: leave the float graphs as they are, to be rounded once more.

        Raises:
            QuantizeError: if there is nothing to round.
        """
        models: dict[str, ir.Model] = {}
        passes: dict[str, QuantizeWeightsPass] = {}
        for file, model in self.models.items():
            models[file] = _copy(model) if again else model
            made = weight_formats(self.scheme, self._ranges[file])
            if made is not None:
                found = self._prepared[file]
                passes[file] = QuantizeWeightsPass(
                    *made, found.grams, kept, higher_precision, found.massive, self._multiplied
                )
                run_passes(models[file], [], [passes[file]])
            if self.scheme.weights_in_memory == "mapped" or self.scheme.float16:
                run_passes(models[file], [], [FoldConstants()])
            if self.scheme.float16:
                models[file] = to_float16(models[file])
        if passes and not any(step.changed for step in passes.values()):
            skipped = "; ".join(note for step in passes.values() for note in step.skipped)
            why = f" ({skipped})" if skipped else ""
            raise QuantizeError(f"no MatMul or Gather over a constant fp32 matrix{why}")
        aliases = {file: passes[file].aliases if file in passes else {} for file in models}
        return QuantizedModels(
            models,
            _same_codes(models, aliases, self._shared),
            {file: step.linear_initializers for file, step in passes.items()},
            {file: step.embeddings for file, step in passes.items()},
            dict(sum((Counter(step.block_sizes) for step in passes.values()), Counter())),
            [note for step in passes.values() for note in step.skipped],
        )

    def toggle_graph(
        self, names: Sequence[str], floats: Mapping[str, Mapping[str, ir.TensorProtocol]]
    ) -> dict[str, ir.Model]:
        """The models by file name, all of them in floating point but for one product, which is
        chosen when they run (:mod:`edgetie.quantize.formats.toggle`).

        Args:
            names: of the weights that can be chosen.
            floats: of each model, what they were before they are rounded.
        """
        models = {}
        for file, model in self.models.items():
            models[file] = _copy(model)
            made = weight_formats(self.scheme, self._ranges[file])
            assert made is not None
            found, layer = self._prepared[file], ToggleFormat(made[1], names, floats[file])
            kept = {*model.graph.initializers} - {*names}
            step = QuantizeWeightsPass(
                made[0],
                layer,
                found.grams,
                kept,
                exact=found.massive,
                linear_in_others=self._multiplied,
            )
            run_passes(models[file], [], [step])
        return models


def _copy(model: ir.Model) -> ir.Model:
    model.graph.sort()  # copies are made node by node
    return model.clone()


def _same_codes(
    models: Mapping[str, ir.Model],
    aliases: Mapping[str, Mapping[str, str]],
    shared: Collection[str],
) -> dict[ir.Value, ir.Value]:
    """Initializers over the bytes of others: a model's own aliases, and codes and scales of weights
    that an earlier model has too. Those were rounded alike: nothing was done to them in either.
    """
    same: dict[ir.Value, ir.Value] = {}
    across: dict[str, ir.Value] = {}
    suffixes = ("scales", "scales.lookup", "zeros", "zeros.lookup", "shift")
    labels = [label for base in shared for label in (base, f"{base}.T")]
    wanted = {*shared, *(f"{label}.{suffix}" for label in labels for suffix in suffixes)}
    for file, model in models.items():
        own, within = aliases[file], dict[str, ir.Value]()
        initializers = sorted(model.graph.initializers.items(), key=lambda item: item[0] in own)
        for name, value in initializers:
            name = own.get(name, name)
            first = (across if name in wanted else within).setdefault(name, value)
            if first is not value and _bytes(first) == _bytes(value):
                same[value] = first
    return same


def _bytes(value: ir.Value) -> int | None:
    return value.const_value.nbytes if value.const_value is not None else None
