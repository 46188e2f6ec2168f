"""``inspect``: what a model file holds, and every copy of its shared weights."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.errors import BundleError, EdgetieError
from edgetie.graph.external_data import byte_range
from edgetie.graph.model_files import load_model
from edgetie.harness.ties.tie_memory import TieMemory, measure_tie
from edgetie.progress import Stages
from edgetie.runtime.session import write_optimized
from edgetie.ties.equal_weights import equal_groups
from edgetie.ties.groups import TieGroup, all_initializers, find_shared_ties, ties_of_file


@dataclass(frozen=True)
class TieProof:
    """One tied weight and its copies.

    Attributes:
        group: the weight and its uses.
        file: how many times its values stand in the file.
        optimized: how many times in the graph as ONNX Runtime rewrites it at start.
        memory: resident bytes of a loaded session over the weight's size, rounded; ``None`` where
            it is too small to measure, or cannot be
            (:func:`~edgetie.harness.ties.tie_memory.measure_tie`).
        resident: the bytes behind ``memory``.
        made_by: who made each copy beyond the first.
    """

    group: TieGroup
    file: int
    optimized: int
    memory: int | None
    resident: TieMemory | None
    made_by: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        copies = {"file": self.file, "optimized": self.optimized, "memory": self.memory}
        resident = None if self.resident is None else vars(self.resident)
        return {
            **self.group.to_dict(),
            "copies": copies,
            "resident_bytes": resident,
            "made_by": list(self.made_by),
        }


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect_model` found.

    Attributes:
        bundle: what was looked at.
        ties: every tied weight, largest first.
        copies: names of other weights that stand in a bare ONNX file several times, as they are or
            transposed: ``tie`` makes each of them one.
        operators: nodes of each operator type.
        tensors: the largest initializers: ``(name, dtype, shape, bytes)``.
        weight_bytes: all initializers, each byte range counted once.
        nodes_per_provider: where ONNX Runtime puts the nodes.
    """

    bundle: Bundle
    ties: tuple[TieProof, ...]
    copies: tuple[tuple[str, ...], ...]
    operators: dict[str, int]
    tensors: tuple[tuple[str, str, tuple[int, ...], int], ...]
    weight_bytes: int
    nodes_per_provider: dict[str, int]


def inspect_model(
    path: str | os.PathLike[str], *, provider: str = "cpu", progress: Stages | None = None
) -> Inspection:
    """Look into a bundle or an ONNX file: file, optimized graph, memory of a loaded session.

    Args:
        path: a bundle or ``.onnx`` file.
        provider: where the optimized graph and the memory are looked at.
        progress: told about each stage.

    Raises:
        BundleError: if it cannot be read or loaded.
        ProviderError: if the provider is unknown or absent.
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
    for model in models.values():  # weights may stand in nodes
        common.LiftConstantsToInitializersPass(lift_all_constants=False)(model)
    known = [tuple(group.parameters) for group in bundle.manifest.ties]
    groups = find_shared_ties(models, known)
    stages.stage("optimized graph")
    with tempfile.TemporaryDirectory() as scratch:
        nodes: Counter[str] = Counter()
        optimized = {}
        for path in bundle.model_paths:
            nodes.update(write_optimized(path, Path(scratch) / path.name, provider))
            optimized[path.name] = ir.load(Path(scratch) / path.name)
        counted = [(group, *_copies(models, optimized, group)) for group in groups]
    stages.stage("memory")
    proofs = []
    for group, file, opt, made_by in counted:
        resident = _resident(models, group, provider)
        memory = None
        if resident is not None:
            memory = _times(resident, group)
            private = resident.anonymous / group.bytes
            if memory > 1 or private > 0.5:
                kernels = dict.fromkeys(u.op_type for u in group.uses if _packs(u.op_type))
                words = ", ".join(kernels) or "the product behind it"
                made_by = [*made_by, f"memory: {words} packs it ({private:.2f} × private)"]
        proofs.append(TieProof(group, file, opt, memory, resident, tuple(made_by)))
    stages.finish()
    return Inspection(
        bundle=bundle,
        ties=tuple(proofs),
        copies=_other_copies(models, groups) if bundle.is_bare else (),
        operators=dict(
            Counter(n.op_type for model in models.values() for n in model.graph).most_common()
        ),
        tensors=_largest(models),
        weight_bytes=_weight_bytes(models),
        nodes_per_provider=dict(nodes),
    )


def _other_copies(
    models: Mapping[str, ir.Model], ties: Sequence[TieGroup]
) -> tuple[tuple[str, ...], ...]:
    """Equal matrices that are not among the ties, and not one number throughout: these are equal
    by chance.
    """
    known = {group.name for group in ties}
    found = []
    for model in models.values():
        for group in equal_groups(all_initializers(model)):
            names = tuple(str(twin.value.name) for twin in group)
            tensor = group[0].value.const_value
            if tensor is None or len(tensor.shape) < 2 or not known.isdisjoint(names):
                continue
            numbers = tensor.numpy().reshape(-1)
            if (numbers != numbers[0]).any():
                found.append(names)
    return tuple(found)


def _packs(op_type: str) -> bool:
    return "MatMul" in op_type or op_type == "Gemm"


def copies_in_memory(bundle: Bundle, provider: str) -> int | None:
    """Copies of the largest tied weight that a session on ``provider`` keeps, measured.

    ``None`` if the manifest names none, or it cannot be measured: see
    :func:`~edgetie.harness.ties.tie_memory.measure_tie`.
    """
    groups = bundle.manifest.ties
    if not groups:
        return None
    group = max(groups, key=lambda each: each.bytes)
    try:
        models = {path.name: load_model(path) for path in bundle.model_paths}
        resident = _resident(models, group, provider)
    except EdgetieError:  # the provider does not take the piece, or the file is broken
        return None
    return None if resident is None else _times(resident, group)


def _times(resident: TieMemory, group: TieGroup) -> int:
    return max(1, round((resident.anonymous + resident.file_mapped) / group.bytes))


def _resident(models: Mapping[str, ir.Model], group: TieGroup, provider: str) -> TieMemory | None:
    """Memory for a weight in the sessions of all models: private bytes add up, pages of the file
    are the same ones.
    """
    found = [
        measure_tie(model, part, provider)
        for file, model in models.items()
        for part in ties_of_file([group], file)
    ]
    parts = [memory for memory in found if memory is not None]
    if not parts or len(parts) < len(found):
        return None
    return TieMemory(
        anonymous=sum(memory.anonymous for memory in parts),
        file_mapped=max(memory.file_mapped for memory in parts),
    )


def _copies(
    models: Mapping[str, ir.Model], optimized: Mapping[str, ir.Model], group: TieGroup
) -> tuple[int, int, list[str]]:
    """Copies in the files and in the optimized graphs, and what each extra one is."""
    holder = next(m for m in models.values() if group.name in m.graph.initializers)
    table = holder.graph.initializers[group.name]
    tensor = table.const_value
    assert tensor is not None
    alike = [
        value
        for model in models.values()
        for value in all_initializers(model)
        if (other := value.const_value) is not None
        and (other.dtype, other.size) == (tensor.dtype, tensor.size)
    ]
    twins = next(
        (g for g in equal_groups(alike) if table.name in [twin.value.name for twin in g]), []
    )
    made_by = [f"file: {t.value.name} holds the same values" for t in twins if t.value is not table]
    array = tensor.numpy()
    ranges: set[Any] = set()
    for file, model in optimized.items():
        before = {str(value.name): value for value in all_initializers(models[file])}
        for value in all_initializers(model):
            form = _form(array, value.const_value)
            if form is None:
                continue
            original = before.get(str(value.name))
            where = (byte_range(original) if original else byte_range(value)) or str(value.name)
            if where in ranges:
                continue
            ranges.add(where)
            if original is None:
                users = ", ".join(f"{node.op_type} {node.name}" for node, _ in value.uses())
                made_by.append(
                    f"optimized: constant folding made {value.name}, {form}, for {users}"
                )
    return max(1, len(twins)), len(ranges), made_by


def _form(array: np.ndarray[Any, Any], other: ir.TensorProtocol | None) -> str | None:
    """In which form a tensor holds the values of a weight; ``None`` where it does not.

    Codes of 8 bits may be counted from another zero: ONNX Runtime makes uint8 of int8.
    """
    if other is None or (other.size, other.nbytes) != (array.size, array.nbytes):
        return None
    found = other.numpy()
    if found.dtype != array.dtype:
        if {found.dtype, array.dtype} != {np.dtype(np.int8), np.dtype(np.uint8)}:
            return None
        found = found.view(np.uint8) ^ 128
        array = array.view(np.uint8)
    if np.array_equal(found.reshape(-1), array.reshape(-1)):
        return "as it is"
    if array.ndim > 1:
        flat = array.reshape(len(array), -1)
        if np.array_equal(found.reshape(-1), flat.T.reshape(-1)):
            return "transposed"
    return None


def _largest(
    models: Mapping[str, ir.Model],
) -> tuple[tuple[str, str, tuple[int, ...], int], ...]:
    rows = {
        byte_range(value) or value: (
            str(value.name), tensor.dtype.name, tuple(tensor.shape.numpy()), tensor.nbytes,
        )
        for model in models.values()
        for value in all_initializers(model)
        if (tensor := value.const_value) is not None
    }  # fmt: skip
    return tuple(sorted(rows.values(), key=lambda row: -row[3])[:10])


def _weight_bytes(models: Mapping[str, ir.Model]) -> int:
    sizes = {
        byte_range(value) or value: value.const_value.nbytes
        for model in models.values()
        for value in all_initializers(model)
        if value.const_value is not None
    }
    return sum(sizes.values())
