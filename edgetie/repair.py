"""``tie``: an ONNX file whose shared weights were stored apart, with each of them one again.

Works on files of any exporter: copies are found by content (:mod:`edgetie.content`), whatever they
are called and wherever they stand. Copies that are only nearly equal, because a converter rounded
one side, are reported with their distance and merged on request.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.bundle import atomic_files, open_bundle
from edgetie.content import MIN_ELEMENTS
from edgetie.errors import BundleError, TieError
from edgetie.external_data import write_model
from edgetie.harness.equivalence import Equivalence, compare_files
from edgetie.passes import run_passes
from edgetie.passes.head import Head
from edgetie.passes.near import MergeNear, NearCopy, near_copies
from edgetie.passes.retie import Retie
from edgetie.report.progress import Stages
from edgetie.ties import TieGroup, find_ties, verify_ties

_TOLERANCE = 1e-5
"""Relative: another order of the same sums."""


@dataclass(frozen=True)
class RepairReport:
    """What :func:`tie` did.

    Attributes:
        path: the file it wrote.
        merged: initializers that are gone, and what took the place of each.
        shared: initializers that share another's bytes in another shape, and that other.
        near: copies that are nearly equal to a table, whether merged or not.
        merged_near: names of those that were.
        skipped: copies that could not be merged, and why.
        ties: the tied weights of the new file.
        bytes_before, bytes_after: sizes of the files, external data included.
        outputs: the new file's outputs against the old one's.
        seconds: where the time went.
    """

    path: Path
    merged: dict[str, str]
    shared: dict[str, str]
    near: tuple[NearCopy, ...]
    merged_near: tuple[str, ...]
    skipped: tuple[str, ...]
    ties: tuple[TieGroup, ...]
    bytes_before: int
    bytes_after: int
    outputs: Equivalence
    seconds: dict[str, float]


def tie(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    max_distance: float = 0.0,
    force: bool = False,
    progress: Stages | None = None,
) -> RepairReport:
    """Make every weight that an ONNX file stores more than once one initializer.

    Args:
        source: an ``.onnx`` file, or a directory with one.
        output: the ``.onnx`` file to write; weights go to a file of that name with ``.data`` added.
        max_distance: also merge copies whose relative distance (Frobenius norm of the difference
            over that of the table) is no more; this changes what the model computes.
        force: replace files that are there.
        progress: told about each stage.

    Raises:
        BundleError: if the file cannot be read, or ``output`` is in the way or the disk is full.
        TieError: if the new file's outputs are not the old one's.
    """
    target = Path(output)
    if target.suffix != ".onnx":
        raise BundleError(f"{target}: name a file that ends in .onnx")
    stages = progress or Stages()
    stages.stage("read")
    bundle = open_bundle(source)
    with atomic_files(target, force=force) as directory:
        model = _load(bundle.model_path)
        vocabulary = min(_table_rows(model), default=2)
        stages.stage("find copies")
        common.LiftConstantsToInitializersPass(lift_all_constants=False)(model)
        retie = Retie()
        run_passes(model, [], [retie])
        near = near_copies(model)
        nearest = MergeNear([copy for copy in near if copy.distance <= max_distance])
        head = Head()
        run_passes(model, [], [nearest])
        run_passes(model, find_ties(model), [head])
        stages.stage("write")
        path = write_model(
            model, directory, aliases=retie.aliases, name=target.name, progress=stages
        )
        written = _load(path)
        ties = find_ties(written)
        verify_ties(written, ties, where=target.name)
        size = sum(file.stat().st_size for file in directory.iterdir())
        stages.stage("compare outputs")
        outputs = compare_files(bundle.model_path, path, vocabulary)
        if not nearest.changed and outputs.relative_error > _TOLERANCE:
            raise TieError(
                f"{bundle.model_path}: tied, its outputs differ by {outputs.relative_error:.1e} of "
                f"the largest ({outputs.reason or 'they should not'}); nothing was written"
            )
    stages.finish()
    return RepairReport(
        path=target,
        merged=retie.merged,
        shared=retie.aliases,
        near=tuple(near),
        merged_near=tuple(nearest.merged),
        skipped=(*retie.skipped, *head.skipped),
        ties=tuple(ties),
        bytes_before=bundle.file_bytes,
        bytes_after=size,
        outputs=outputs,
        seconds=dict(stages.seconds),
    )


def _load(path: Path) -> ir.Model:
    try:
        return ir.load(path)
    except Exception as error:
        raise BundleError(f"{path}: not a readable ONNX model ({error})") from error


def _table_rows(model: ir.Model) -> Iterator[int]:
    """Numbers of rows of the tables that are looked up in."""
    for graph in model.graphs():
        for node in graph:
            table: Any = node.inputs[0] if "Gather" in node.op_type and node.inputs else None
            shape = table.shape if table is not None else None
            if shape is not None and len(shape) > 1 and isinstance(shape[0], int):
                rows = shape[0]
                if int(np.prod([d for d in shape if isinstance(d, int)])) >= MIN_ELEMENTS:
                    yield rows
