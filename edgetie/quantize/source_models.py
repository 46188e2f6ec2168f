"""Read and check the float models that are to be quantized."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.manifest import Manifest, onnx_manifest
from edgetie.bundle.names import MODEL
from edgetie.errors import QuantizeError
from edgetie.graph.constant_values import constant_values, static_shape
from edgetie.graph.external_data import byte_range
from edgetie.graph.matching import last_dimension, operator
from edgetie.graph.model_files import load_model, remove_weights_from_inputs
from edgetie.passes.base import run_passes
from edgetie.passes.conv_to_matmul import ConvToMatMul
from edgetie.passes.einsum_to_matmul import EinsumToMatMul
from edgetie.passes.flatten_tables import FlattenTables
from edgetie.passes.fold_weights import FoldWeights
from edgetie.passes.lift_weights import LiftWeights
from edgetie.passes.look_ups_to_gather import LookUpsToGather
from edgetie.passes.merge_duplicates import MergeDuplicates
from edgetie.passes.merge_near_duplicates import (
    MAX_DISTANCE,
    MergeNearDuplicates,
    NearCopy,
    near_copies,
)
from edgetie.passes.move_table_operators import MoveTableOperators
from edgetie.passes.patches_to_matmul import PatchesToMatMul
from edgetie.passes.split_attention import SplitAttention
from edgetie.passes.split_embed_layer_norm import SplitEmbedLayerNorm
from edgetie.passes.widen_weights import WidenWeights
from edgetie.quantize.calibration.layerwise_run import is_bidirectional
from edgetie.quantize.opset import raise_opset
from edgetie.quantize.preprocess.adapter_inputs import read_matrices
from edgetie.targets import CHECKPOINT
from edgetie.ties.groups import TieGroup, equal_initializers, find_shared_ties, find_ties

_QUANTIZED = {
    "MatMulNBits", "GatherBlockQuantized", "MatMulInteger", "DynamicQuantizeLinear",
    "QLinearMatMul", "DequantizeLinear", "QGemm", "QAttention",
}  # fmt: skip
_DISTANCES = (0.001, 0.01, MAX_DISTANCE)


@dataclass(frozen=True)
class SourceModels:
    """The float models of a bundle.

    Attributes:
        models: by the file names of the bundle to be written.
        tied_parameters: names of the parameters in each tie group of the manifest.
        ties: tie groups of each model.
        tied_names: names of all tied weights, those that models share included.
        shared: names of weights that several models read from the same bytes.
        near: copies that are nearly equal to an embedding table, whether merged or not.
        merged_near: names of those that were merged.
        parameters: number of float values, copies left out.
        file_bytes: size of the source's files.
    """

    bundle: Bundle
    models: dict[str, ir.Model]
    tied_parameters: list[tuple[str, ...]]
    ties: dict[str, list[TieGroup]]
    tied_names: list[str]
    shared: frozenset[str]
    near: tuple[NearCopy, ...]
    merged_near: tuple[str, ...]
    parameters: int
    file_bytes: int

    def make_manifest(self) -> Manifest:
        """Return a copy of the manifest; of a bare ONNX file, with what its graph tells."""
        bundle, manifest = self.bundle, self.bundle.manifest
        if not bundle.is_bare:
            return replace(manifest)
        (model,) = self.models.values()
        logits = [value for value in model.graph.outputs if value.name == "logits"]
        vocab_size = last_dimension(logits[0]) if logits else None
        return onnx_manifest(
            manifest,
            bundle.model_path.name,
            task="masked-lm" if is_bidirectional(bundle.model_path) else "causal-lm",
            vocab_size=vocab_size or 0,
            parameters=self.parameters,
        )


def read_source_models(
    source: str | os.PathLike[str] | Bundle, *, max_distance: float = 0.0, opset: int = 1
) -> SourceModels:
    """Read the models of a bundle or an ``.onnx`` file, with each weight stored once and read by
    Gathers and MatMuls themselves.

    Args:
        source: what to read.
        max_distance: merge copies up to this distance from an embedding table.
        opset: models of older opsets are converted to this one.

    Raises:
        BundleError: if it cannot be read.
        QuantizeError: if it is quantized already, has fixed shapes, stores a tied weight twice, or
            stores a table again rounded to 16 bits.
    """
    bundle = source if isinstance(source, Bundle) else open_bundle(source)
    file_bytes = bundle.file_bytes  # before anything is written, perhaps in the same folder
    if bundle.has_fixed_shapes:
        raise QuantizeError(f"{bundle.directory}: has fixed shapes; quantize first, then fix them")
    names = [path.name for path in bundle.model_paths] if len(bundle.model_paths) > 1 else [MODEL]
    models = {name: load_model(path) for name, path in zip(names, bundle.model_paths, strict=True)}
    for model in models.values():
        read_matrices(bundle, model)
    shared = _shared_weights(models)
    near: list[NearCopy] = []
    for path, (name, model) in zip(bundle.model_paths, models.items(), strict=True):
        _require_float(bundle, model)
        remove_weights_from_inputs(model)
        models[name] = model = raise_opset(model, opset)
        _normalize(bundle, model, shared)
        near += _merge_near_copies(path, model, max_distance)
    tensors = [v.const_value for m in models.values() for v in m.graph.initializers.values()]
    parameters = sum(t.size for t in tensors if t is not None and t.dtype.is_floating_point())
    tied_parameters = [tuple(group.parameters) for group in bundle.manifest.ties]
    tied_names = [group.name for group in find_shared_ties(models, tied_parameters)]
    ties = {name: find_ties(model, tied_parameters) for name, model in models.items()}
    for path, (name, model) in zip(bundle.model_paths, models.items(), strict=True):
        for first, *others in equal_initializers(model, like=[group.name for group in ties[name]]):
            raise QuantizeError(
                f"{path}: {first} is stored again as {', '.join(others)}, which is an input or "
                "output itself; leave it out of these"
            )
    return SourceModels(
        bundle,
        models,
        tied_parameters,
        ties,
        tied_names,
        shared,
        tuple(near),
        tuple(copy.name for copy in near if copy.distance <= max_distance),
        parameters,
        file_bytes,
    )


def _require_float(bundle: Bundle, model: ir.Model) -> None:
    """Refuse a model that is already quantized or has half precision."""
    node = next((node for node in model.graph if operator(node) in _QUANTIZED), None)
    if node is not None:
        is_kept = bundle.manifest.quantization.get("scheme") == CHECKPOINT
        source = (
            "its checkpoint, exported dequantized" if is_kept else "the fp32 model it came from"
        )
        raise QuantizeError(
            f"{bundle.model_path}: is quantized already ({node.op_type} {node.name}); quantize "
            f"{source}"
        )
    if bundle.manifest.precision not in ("", "fp32"):
        raise QuantizeError(
            f"{bundle.directory}: is {bundle.manifest.precision}; quantize an fp32 bundle"
        )


def _shared_weights(models: Mapping[str, ir.Model]) -> frozenset[str]:
    """Return the names of weights that several models read from the same bytes."""
    ranges = Counter(
        (name, byte_range(value))
        for model in models.values()
        for name, value in model.graph.initializers.items()
    )
    return frozenset(name for (name, place), count in ranges.items() if place and count > 1)


def _normalize(bundle: Bundle, model: ir.Model, shared: Collection[str]) -> None:
    """Let every Gather and MatMul read a weight itself, and store each weight once."""
    run_passes(model, [], [LiftWeights(readers=True), MergeDuplicates(reshape=True)])
    computed = [value for value, weights in constant_values(model).items() if weights]
    if bundle.is_bare or any(static_shape(value) is None for value in computed):
        _infer_shapes(model)
    run_passes(model, [], [FlattenTables(shared), SplitEmbedLayerNorm(), SplitAttention()])
    run_passes(model, [], [ConvToMatMul(), PatchesToMatMul(shared)])
    run_passes(model, [], [EinsumToMatMul(), LookUpsToGather()])
    run_passes(model, [], [WidenWeights(), FoldWeights(shared), MoveTableOperators(shared)])


def _merge_near_copies(path: Path, model: ir.Model, max_distance: float) -> list[NearCopy]:
    """Merge near copies of a table, and refuse others that are the table rounded to 16 bits."""
    copies = near_copies(model)
    run_passes(model, [], [MergeNearDuplicates([c for c in copies if c.distance <= max_distance])])
    rounded = next((c for c in copies if c.distance > max_distance and c.rounding), None)
    if rounded is None:
        return copies
    enough = next(step for step in _DISTANCES if step >= rounded.distance)
    raise QuantizeError(
        f"{path}: {rounded.describe()}, and would be quantized a second time",
        advice={"max_distance": enough},
    )


def _infer_shapes(model: ir.Model) -> None:
    """Add shapes that other exporters leave out. A graph that defies inference stays as it is."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        ir.passes.common.ShapeInferencePass()(model)
    finally:
        logging.disable(level)
