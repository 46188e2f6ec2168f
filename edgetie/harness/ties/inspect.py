"""``inspect``: the contents of a model file, and every copy of its tied weights."""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.errors import BundleError, EdgetieError, TieError
from edgetie.graph.external_data import byte_range
from edgetie.graph.model_files import load_model
from edgetie.harness.ties.tie_memory import TieMemory, measure_tie
from edgetie.progress import Stages
from edgetie.providers.placement import resolve_provider
from edgetie.providers.registry import AUTO
from edgetie.runtime.session import write_optimized
from edgetie.ties.equal_weights import equal_groups
from edgetie.ties.groups import (
    TieGroup,
    all_initializers,
    equal_initializers,
    find_shared_ties,
    find_ties,
    ties_of_file,
    verify_ties,
)

logger = logging.getLogger(__name__)

_Tensor = tuple[str, str, tuple[int, ...], int]


@dataclass(frozen=True)
class TieCopies:
    """One tied weight and its copies.

    Attributes:
        group: the weight and its uses.
        file: copies of its values in the file.
        optimized: copies in the graph as ONNX Runtime rewrites it at start.
        causes: what made each copy beyond the first.
        memory: resident bytes of a loaded session over the weight's size, rounded; ``None`` if
            :func:`~edgetie.harness.ties.tie_memory.measure_tie` cannot measure it.
        resident: the bytes that ``memory`` is computed from.
    """

    group: TieGroup
    file: int
    optimized: int
    causes: tuple[str, ...]
    memory: int | None = None
    resident: TieMemory | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.group.to_dict(),
            "copies": {"file": self.file, "optimized": self.optimized, "memory": self.memory},
            "resident_bytes": None if self.resident is None else vars(self.resident),
            "made_by": list(self.causes),
        }


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect_model` reports.

    Attributes:
        bundle: the bundle inspected.
        ties: every tied weight, largest first.
        copies: names of other weights that a bare ONNX file stores several times, unchanged or
            transposed: ``tie`` makes each of them one.
        operators: nodes of each operator type.
        tensors: the largest initializers: ``(name, dtype, shape, bytes)``.
        weight_bytes: all initializers, each byte range counted once.
        provider: execution provider that was used; never ``auto``.
        nodes_per_provider: nodes of ONNX Runtime's optimized graph, by provider.
    """

    bundle: Bundle
    ties: tuple[TieCopies, ...]
    copies: tuple[tuple[str, ...], ...]
    operators: dict[str, int]
    tensors: tuple[_Tensor, ...]
    weight_bytes: int
    provider: str
    nodes_per_provider: dict[str, int]


def inspect_model(
    path: str | os.PathLike[str], *, provider: str = AUTO, progress: Stages | None = None
) -> Inspection:
    """Inspect a bundle or an ONNX file: file, optimized graph, memory of a loaded session.

    Args:
        path: a bundle or ``.onnx`` file.
        provider: execution provider of the optimized graph and the session. ``auto`` is edgetie's
            own if it is here and runs nodes of the model, otherwise ``cpu``.
        progress: notified of each stage.

    Raises:
        BundleError, ProviderError: if it cannot be read or loaded, or the provider not used.
    """
    stages = progress or Stages()
    bundle = open_bundle(path, hashes=True)
    if bundle.manifest.compiled:
        raise BundleError(
            f"{bundle.directory}: is compiled for {bundle.manifest.compiled}, its weights are in a "
            "context binary; inspect the bundle it was made of"
        )
    stages.stage("read")
    models = {path.name: load_model(path) for path in bundle.model_paths}
    for model in models.values():  # weights may be attributes of nodes
        common.LiftConstantsToInitializersPass(lift_all_constants=False)(model)
    groups = find_shared_ties(models, [tuple(group.parameters) for group in bundle.manifest.ties])
    stages.stage("optimized graph")
    with tempfile.TemporaryDirectory() as scratch:
        nodes: Counter[str] = Counter()
        optimized = {}
        for path in bundle.model_paths:
            nodes.update(write_optimized(path, Path(scratch) / path.name, provider))
            optimized[path.name] = ir.load(Path(scratch) / path.name)
        ties = [_count_copies(models, optimized, group) for group in groups]
    stages.stage("memory")
    ties = [_measure_memory(models, tie, provider) for tie in ties]
    stages.finish()
    initializers = [value for model in models.values() for value in all_initializers(model)]
    tensors = _tensors(initializers)
    operators = Counter(node.op_type for model in models.values() for node in model.graph)
    return Inspection(
        bundle=bundle,
        ties=tuple(ties),
        copies=tuple(_other_copies(initializers, groups)) if bundle.is_bare else (),
        operators=dict(operators.most_common()),
        tensors=tuple(sorted(tensors, key=lambda tensor: -tensor[3])[:10]),
        weight_bytes=sum(size for *_, size in tensors),
        provider=resolve_provider(provider, nodes).name,
        nodes_per_provider=dict(nodes),
    )


def _measure_memory(models: Mapping[str, ir.Model], tie: TieCopies, provider: str) -> TieCopies:
    """Add the copies in the memory of a loaded session, if they can be measured."""
    group, resident = tie.group, _resident(models, tie.group, provider)
    if resident is None:
        return tie
    memory, causes = resident.copies(group.bytes), tie.causes
    private = resident.anonymous / group.bytes
    if memory > 1 or private > 0.5:
        op_types = dict.fromkeys(use.op_type for use in group.uses)
        kernels = [name for name in op_types if "MatMul" in name or name == "Gemm"]
        names = ", ".join(kernels) or "the MatMul that reads it"
        causes = (*causes, f"memory: {names} packs it ({private:.2f} × private)")
    return replace(tie, memory=memory, resident=resident, causes=causes)


def _other_copies(
    initializers: Sequence[ir.Value], ties: Sequence[TieGroup]
) -> Iterator[tuple[str, ...]]:
    """Name equal matrices that are not ties. Matrices of a single number are equal by chance."""
    tied = {group.name for group in ties}
    for group in equal_groups(initializers):
        names = tuple(str(copy.value.name) for copy in group)
        tensor = group[0].value.const_value
        if tensor is None or len(tensor.shape) < 2 or not tied.isdisjoint(names):
            continue
        numbers = tensor.numpy().reshape(-1)
        if (numbers != numbers[0]).any():
            yield names


def copies_in_memory(bundle: Bundle, provider: str) -> int | None:
    """Count the copies of the largest tied weight in a session's memory, if it can be measured."""
    group = max(bundle.manifest.ties, key=lambda each: each.bytes, default=None)
    if group is None:
        return None
    try:
        models = {path.name: load_model(path) for path in bundle.model_paths}
        resident = _resident(models, group, provider)
    except EdgetieError:  # the provider does not take the subgraph, or the file is broken
        logger.debug("copies of %s in memory cannot be measured", group.name, exc_info=True)
        return None
    return None if resident is None else resident.copies(group.bytes)


def _resident(models: Mapping[str, ir.Model], group: TieGroup, provider: str) -> TieMemory | None:
    """Measure the memory of a weight in the sessions of all models.

    Private bytes add up. Pages of the file are the same ones.
    """
    memories = [
        measure_tie(model, part, provider)
        for file, model in models.items()
        for part in ties_of_file([group], file)
    ]
    measured = [memory for memory in memories if memory is not None]
    if not measured or len(measured) < len(memories):
        return None
    return TieMemory(
        anonymous=sum(memory.anonymous for memory in measured),
        file_mapped=max(memory.file_mapped for memory in measured),
    )


def _count_copies(
    models: Mapping[str, ir.Model], optimized: Mapping[str, ir.Model], group: TieGroup
) -> TieCopies:
    """Count copies in the files and in the optimized graphs."""
    owner = next(m for m in models.values() if group.name in m.graph.initializers)
    weight = owner.graph.initializers[group.name]
    tensor = weight.const_value
    assert tensor is not None
    candidates = [
        value
        for model in models.values()
        for value in all_initializers(model)
        if (other := value.const_value) is not None
        and (other.dtype, other.size) == (tensor.dtype, tensor.size)
    ]
    groups = [[copy.value for copy in copies] for copies in equal_groups(candidates)]
    duplicates = next((g for g in groups if weight.name in [value.name for value in g]), [])
    others = [value.name for value in duplicates if value is not weight]
    causes = [f"file: {name} holds the same values" for name in others]
    places: set[Any] = set()
    for file, model in optimized.items():
        originals = {str(value.name): value for value in all_initializers(models[file])}
        for value in all_initializers(model):
            arrangement = _arrangement(tensor.numpy(), value.const_value)
            original = originals.get(str(value.name))
            place = byte_range(original or value) or str(value.name)
            if arrangement is None or place in places:
                continue
            places.add(place)
            if original is None:
                users = ", ".join(f"{node.op_type} {node.name}" for node, _ in value.uses())
                causes.append(
                    f"optimized: constant folding made {value.name}, {arrangement}, for {users}"
                )
    return TieCopies(group, max(1, len(duplicates)), len(places), tuple(causes))


def _arrangement(array: np.ndarray[Any, Any], other: ir.TensorProtocol | None) -> str | None:
    """Say how a tensor stores the values of a weight; ``None`` if it does not.

    8-bit values may have another zero point: ONNX Runtime makes uint8 of int8.
    """
    if other is None or (other.size, other.nbytes) != (array.size, array.nbytes):
        return None
    values = other.numpy()
    if values.dtype != array.dtype:
        if {values.dtype, array.dtype} != {np.dtype(np.int8), np.dtype(np.uint8)}:
            return None
        values, array = values.view(np.uint8) ^ 128, array.view(np.uint8)
    if np.array_equal(values.reshape(-1), array.reshape(-1)):
        return "as it is"
    transposed = array.reshape(len(array), -1).T.reshape(-1) if array.ndim > 1 else array
    return "transposed" if np.array_equal(values.reshape(-1), transposed) else None


def _tensors(initializers: Sequence[ir.Value]) -> list[_Tensor]:
    """Describe initializers, each byte range once."""
    tensors: dict[Any, _Tensor] = {
        byte_range(value) or value: (
            str(value.name), tensor.dtype.name, tuple(tensor.shape.numpy()), tensor.nbytes,
        )
        for value in initializers
        if (tensor := value.const_value) is not None
    }  # fmt: skip
    return list(tensors.values())


@dataclass(frozen=True)
class TieStatus:
    """The state of a file's tied weights.

    Attributes:
        groups: number of tied weights.
        intact: whether each is one initializer; ``None`` if the model has none.
        detail: names, uses and sizes, or the ties that are broken.
    """

    groups: int
    intact: bool | None
    detail: str


def tie_status(bundle: Bundle) -> TieStatus:
    """Compare a file with its manifest; in a bare ONNX file, search for equal weights.

    Weights are read from the file only if two of equal size must be compared.
    """
    if not bundle.is_bare:
        groups = bundle.manifest.ties
        try:
            for path in bundle.model_paths:
                verify_ties(load_model(path), ties_of_file(groups, path.name), path.name)
        except TieError as error:
            return TieStatus(len(groups), False, str(error))
    else:
        model = load_model(bundle.model_path)
        groups = find_ties(model)
        copies = equal_initializers(model)
        if copies:
            detail = "; ".join(f"{' = '.join(names)} stored {len(names)} times" for names in copies)
            return TieStatus(len(groups) + len(copies), False, detail)
    if not groups:
        return TieStatus(0, None, "no tied weights")
    detail = "; ".join(
        f"{group.name}: {len(group.uses)} uses, {group.bytes / 1e6:.1f} MB once" for group in groups
    )
    return TieStatus(len(groups), True, detail)
