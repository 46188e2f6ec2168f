"""``inspect``: what a model file holds, and every copy of its shared weights."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.bundle import Bundle, open_bundle
from edgetie.content import byte_range
from edgetie.harness.tie_memory import TieMemory, measure_tie
from edgetie.report.progress import Stages
from edgetie.runtime.session import open_session
from edgetie.ties import TieGroup, equal_initializers, find_ties


@dataclass(frozen=True)
class TieProof:
    """One tied weight and its copies.

    Attributes:
        group: the weight and its uses.
        file: how many times its values stand in the file.
        optimized: how many times in the graph as ONNX Runtime rewrites it at start.
        memory: resident bytes of a loaded session over the weight's size, rounded; ``None`` where
            it is too small to measure.
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
    """What :func:`inspect` found.

    Attributes:
        bundle: what was looked at.
        ties: every tied weight, largest first.
        operators: nodes of each operator type.
        tensors: the largest initializers: ``(name, dtype, shape, bytes)``.
        weight_bytes: all initializers, each byte range counted once.
        nodes_per_provider: where ONNX Runtime puts the nodes.
    """

    bundle: Bundle
    ties: tuple[TieProof, ...]
    operators: dict[str, int]
    tensors: tuple[tuple[str, str, tuple[int, ...], int], ...]
    weight_bytes: int
    nodes_per_provider: dict[str, int]


def inspect(
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
    stages.stage("read")
    model = ir.load(bundle.model_path)
    manifest = bundle.manifest
    known = [tuple(group.parameters) for group in manifest.ties] if manifest else []
    groups = find_ties(model, known)
    stages.stage("optimized graph")
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "optimized.onnx"
        session = open_session(bundle, provider=provider, optimized_model_path=target)
        nodes = session.nodes_per_provider
        del session
        optimized = ir.load(target)
        counted = [(group, *_copies(model, optimized, group)) for group in groups]
    stages.stage("memory")
    proofs = []
    for group, file, opt, made_by in counted:
        resident = measure_tie(model, group, provider)
        memory = None
        if resident is not None:
            total = resident.anonymous + resident.file_mapped
            memory = max(1, round(total / group.bytes))
            private = resident.anonymous / group.bytes
            if memory > 1 or private > 0.5:
                kernels = ", ".join(
                    dict.fromkeys(u.op_type for u in group.uses if _packs(u.op_type))
                )
                made_by = [*made_by, f"memory: {kernels} packs it ({private:.2f} × private)"]
        proofs.append(TieProof(group, file, opt, memory, resident, tuple(made_by)))
    stages.finish()
    return Inspection(
        bundle=bundle,
        ties=tuple(proofs),
        operators=dict(Counter(node.op_type for node in model.graph).most_common()),
        tensors=_largest(model),
        weight_bytes=_weight_bytes(model),
        nodes_per_provider=nodes,
    )


def _packs(op_type: str) -> bool:
    return "MatMul" in op_type or op_type == "Gemm"


def _copies(model: ir.Model, optimized: ir.Model, group: TieGroup) -> tuple[int, int, list[str]]:
    """Copies in the file and in the optimized graph, and what each extra one is."""
    twins = next(
        (names for names in equal_initializers(model, [group.name]) if group.name in names), []
    )
    made_by = [f"file: {name} holds the same values" for name in twins if name != group.name]
    table = model.graph.initializers[group.name].const_value
    assert table is not None
    array = table.numpy()
    ranges, found = set(), 0
    for value in optimized.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.size != array.size or tensor.dtype != table.dtype:
            continue
        other = tensor.numpy()
        straight = np.array_equal(other.reshape(-1), array.reshape(-1))
        if not straight and not (array.ndim == 2 and np.array_equal(other, array.T)):
            continue
        original = model.graph.initializers.get(str(value.name))
        where = (byte_range(original) if original else byte_range(value)) or str(value.name)
        if where in ranges:
            continue
        ranges.add(where)
        found += 1
        if value.name not in model.graph.initializers:
            users = ", ".join(f"{node.op_type} {node.name}" for node, _ in value.uses())
            form = "as it is" if straight else "transposed"
            made_by.append(f"optimized: constant folding made {value.name}, {form}, for {users}")
    return max(1, len(twins)), found, made_by


def _largest(model: ir.Model) -> tuple[tuple[str, str, tuple[int, ...], int], ...]:
    rows = [
        (str(name), tensor.dtype.name, tuple(tensor.shape.numpy()), tensor.nbytes)
        for name, value in model.graph.initializers.items()
        if (tensor := value.const_value) is not None
    ]
    return tuple(sorted(rows, key=lambda row: -row[3])[:10])


def _weight_bytes(model: ir.Model) -> int:
    sizes = {
        byte_range(value) or str(name): value.const_value.nbytes
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    return sum(sizes.values())
