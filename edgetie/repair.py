"""``tie``: ONNX files whose shared weights were stored apart, with each of them one again.

Works on files of any exporter: copies are found by content (:mod:`equal_weights`), whatever they
are called and wherever they stand. Copies that are only nearly equal, because a converter rounded
one side, are reported with their distance and merged on request.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.bundle.atomic import atomic_directory, atomic_files
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.manifest import Manifest
from edgetie.bundle.names import DATA, MANIFEST
from edgetie.errors import BundleError, EdgetieError, TieError
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import make_names_unique
from edgetie.graph.external_data import external_data_files
from edgetie.graph.model_files import load_model, write_models
from edgetie.graph.operators import operator
from edgetie.harness.ties.equivalence import Equivalence, compare_files
from edgetie.passes.merge_duplicates import (
    MergeDuplicates,
    can_read_transposed,
    fixed,
    hoist,
    read_transposed,
)
from edgetie.passes.merge_near_duplicates import ALIKE, MergeNearDuplicates, NearCopy, near_copies
from edgetie.passes.run import run_passes
from edgetie.passes.tied_head_gemm import TiedHeadGemm
from edgetie.progress import Stages
from edgetie.ties.equal_weights import equal_groups
from edgetie.ties.groups import TieGroup, all_initializers, find_ties, verify_ties

_TOLERANCE = 1e-5
"""Relative: another order of the same sums."""


@dataclass(frozen=True)
class RepairReport:
    """What :func:`tie_model` did.

    Attributes:
        path: the file it wrote, or the directory.
        merged: initializers that are gone, and what took the place of each; of several files
            with the file's name in front, here and in all that follows.
        shared: initializers that share another's bytes, in another shape or file, and that other.
        near: copies that are nearly equal to a table, whether merged or not.
        merged_near: names of those that were.
        skipped: copies that could not be merged, and why.
        ties: the tied weights of the new file.
        bytes_before, bytes_after: sizes of the files, external data included.
        outputs: each new file's outputs against the old one's.
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
    outputs: tuple[Equivalence, ...]
    seconds: dict[str, float]


def tie_model(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    max_distance: float = 0.0,
    force: bool = False,
    progress: Stages | None = None,
) -> RepairReport:
    """Make every weight that ONNX files store more than once one byte range.

    Args:
        sources: an ``.onnx`` file or a directory with one; or several files that belong together,
            such as an encoder and its decoders.
        output: the ``.onnx`` file to write, its weights in a file of that name with ``.data``
            added; of several files the directory, which keeps their names, with one data file
            ``model.onnx.data`` for all.
        max_distance: also merge copies whose relative distance (Frobenius norm of the difference
            over that of the table) is no more, up to 0.1; this changes what the model computes.
        force: replace files that are there; not with several files, a directory is never replaced.
        progress: told about each stage.

    Raises:
        BundleError: if a file cannot be read, ``output`` is in the way or the disk is full, or a
            file that would be replaced belongs to another model too.
        EdgetieError: if ``max_distance`` is out of range.
        TieError: if a new file's outputs are not the old one's.
    """
    stages = progress or Stages()
    if not 0 <= max_distance <= ALIKE:
        raise EdgetieError(f"max_distance {max_distance:g}: give a share of 0 to {ALIKE:g}")
    stages.stage("read")
    several = not isinstance(sources, (str, os.PathLike)) and len(sources) > 1
    if several and force:
        raise BundleError(f"{output}: a directory is never replaced; choose another, without force")
    paths = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    bundles = [open_bundle(path) for path in paths]
    for source, bundle in zip(paths, bundles, strict=True):
        if len(bundle.model_paths) > 1:
            held = ", ".join(path.name for path in bundle.model_paths)
            raise BundleError(f"{source}: holds several models; name the files themselves: {held}")
    target = Path(output)
    names = [bundle.model_path.name for bundle in bundles] if several else [target.name]
    if len({*names, DATA}) != len(names) + 1:
        raise BundleError(f"two of the files, or one and {DATA}, have the same name; rename one")
    files = {p for b in bundles for p in (b.model_path, *external_data_files(b.model_path))}
    bytes_before = sum(path.stat().st_size for path in files)
    if not several and target.suffix != ".onnx":
        raise BundleError(f"{target}: name a file that ends in .onnx")
    if not several:
        _require_alone(target, bundles[0].model_path)
    place = atomic_directory(target, force=None) if several else atomic_files(target, force=force)
    with place as directory:
        with _sound(bundles):
            models = [
                _Model(name, bundle.model_path, f"{name}: " if several else "")
                for name, bundle in zip(names, bundles, strict=True)
            ]
            stages.stage("find copies")
            for model in models:
                model.merge(max_distance)
            same = _share(models)
            for model in models:
                make_names_unique(model.graph)
            stages.stage("write")
            data = DATA if several else f"{target.name}.data"
            written = write_models(
                {model.name: model.graph for model in models},
                directory, data=data, same=same, progress=stages,
            )  # fmt: skip
        ties = [
            tie_model
            for model, path in zip(models, written, strict=True)
            for tie_model in _verified(path, model.copies_left, path.name if several else "")
        ]
        size = sum(file.stat().st_size for file in directory.iterdir())
        stages.stage("compare outputs")
        outputs = [
            _compare(model, bundle.model_path, path)
            for model, bundle, path in zip(models, bundles, written, strict=True)
        ]
    stages.finish()
    return RepairReport(
        path=target,
        merged={m.label(k): m.label(v) for m in models for k, v in m.merged.items()},
        shared={k: v for model in models for k, v in model.shared.items()},
        near=tuple(
            replace(copy, name=m.label(copy.name), table=m.label(copy.table))
            for m in models
            for copy in m.near
        ),
        merged_near=tuple(m.label(name) for m in models for name in m.merged_near),
        skipped=tuple(text for model in models for text in model.skipped),
        ties=tuple(ties),
        bytes_before=bytes_before,
        bytes_after=size,
        outputs=tuple(outputs),
        seconds=dict(stages.seconds),
    )


def _require_alone(target: Path, source: Path) -> None:
    """Refuse to replace files that other models are made of."""
    data = target.parent / f"{target.name}.data"
    manifest = target.parent / MANIFEST
    if target.exists() and manifest.is_file():
        known = Manifest.from_json(manifest.read_text(encoding="utf-8", errors="replace"), manifest)
        if {target.name, data.name} & known.files.keys():
            raise BundleError(f"{target}: is part of a bundle; choose another output")
    if not data.exists():
        return
    for model in {*target.parent.glob("*.onnx"), source}:
        if not model.is_file() or (target.exists() and model.samefile(target)):
            continue
        with contextlib.suppress(BundleError):  # what cannot be read reads nothing
            if any(file.exists() and file.samefile(data) for file in external_data_files(model)):
                break
    else:
        return
    raise BundleError(f"{data}: {model.name} reads it too; choose another output")


@contextlib.contextmanager
def _sound(bundles: Sequence[Bundle]) -> Iterator[None]:
    """Blame a graph that breaks the rules of ONNX on its file."""
    try:
        yield
        return
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, EOFError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
    except OSError as error:
        if error.errno is not None:
            raise
        why = " ".join(str(error).split())[:200]
    names = ", ".join(str(bundle.model_path) for bundle in bundles)
    raise BundleError(f"{names}: not a valid ONNX model ({why}); export it again")


class _Model:
    """One of the files, its graph, and what is merged in it."""

    def __init__(self, name: str, path: Path, prefix: str) -> None:
        self.name, self._prefix = name, prefix
        self.graph = load_model(path)
        self.vocabulary = min(_table_rows(self.graph), default=2)
        self.merged: dict[str, str] = {}
        self.aliases: dict[ir.Value, ir.Value] = {}
        self.shared: dict[str, str] = {}
        self.near: list[NearCopy] = []
        self.merged_near: list[str] = []
        self.skipped: list[str] = []
        self.copies_left = False

    def label(self, text: str) -> str:
        """A name, or what is said of it, as reports give it."""
        return f"{self._prefix}{text}"

    def merge(self, max_distance: float) -> None:
        """Merge the copies within the file."""
        common.LiftConstantsToInitializersPass(lift_all_constants=False)(self.graph)
        retie = MergeDuplicates()
        run_passes(self.graph, [], [retie])
        self.near = near_copies(self.graph)
        wanted = [copy for copy in self.near if max_distance and copy.distance <= max_distance]
        nearest = MergeNearDuplicates(wanted)
        run_passes(self.graph, [], [nearest])
        self.fuse_heads()
        self.merged, self.aliases = retie.merged, retie.aliases
        self.shared = {
            self.label(str(copy.name)): self.label(str(kept.name))
            for copy, kept in retie.aliases.items()
        }
        self.merged_near = nearest.merged
        self.skipped += map(self.label, retie.skipped)
        self.copies_left = bool(retie.skipped)

    def fuse_heads(self) -> None:
        """Products with a transposed table in a form that ONNX Runtime does not copy."""
        head = TiedHeadGemm()
        run_passes(self.graph, [], [head])  # the written file is held against its ties
        self.skipped += map(self.label, head.skipped)


def _share(models: list[_Model]) -> dict[ir.Value, ir.Value]:
    """Initializers that are to lie over another's bytes, within a file and across files."""
    same: dict[ir.Value, ir.Value] = {}
    owners: dict[ir.Value, _Model] = {}
    for model in models:
        same |= model.aliases
        owners |= dict.fromkeys(all_initializers(model.graph), model)
    if len(models) == 1:
        return same
    for first, *twins in equal_groups(value for value in owners if value not in same):
        for twin in twins:
            owner, value = owners[twin.value], twin.value
            if fixed(value, owner.graph) and twin.form == "transposed":
                owner.skipped.append(owner.label(f"{value.name}: is an input or output itself"))
                continue
            label = owners[first.value].label(str(first.value.name))
            if twin.form == "transposed" and not can_read_transposed(value, first.value):
                owner.skipped.append(owner.label(f"{value.name}: is {label} in another shape"))
                continue
            owner.shared[owner.label(str(value.name))] = label
            if twin.form == "transposed":
                hoist(owner.graph, value)
                value = read_transposed(owner.graph.graph, value, first.value)
                owner.fuse_heads()
            same[value] = first.value
    return same


def _verified(path: Path, copies_left: bool, file: str) -> list[TieGroup]:
    """The ties of a written file, which has no copy of one unless copies had to stay.

    ``file`` is what their uses are said to be in.
    """
    model = load_model(path)
    ties = find_ties(model)
    if not copies_left:
        verify_ties(model, ties, where=path.name)
    return [
        replace(group, uses=tuple(replace(use, file=file) for use in group.uses)) for group in ties
    ]


def _compare(model: _Model, before: Path, after: Path) -> Equivalence:
    outputs = compare_files(before, after, model.vocabulary)
    broken = not np.isfinite(outputs.max_abs_error) and outputs.runs_before
    if (broken or not model.merged_near) and outputs.relative_error > _TOLERANCE:
        raise TieError(
            f"{before}: tied, its outputs differ by {outputs.relative_error:.1e} of "
            f"the largest ({outputs.reason or 'they should not'}); nothing was written"
        )
    return outputs


def _table_rows(model: ir.Model) -> Iterator[int]:
    """Numbers of rows of the tables that are looked up in."""
    for graph in model.graphs():
        for node in graph:
            table: Any = (
                node.inputs[0] if operator(node).startswith("Gather") and node.inputs else None
            )
            shape = table.shape if table is not None else None
            if shape is not None and len(shape) > 1 and isinstance(shape[0], int):
                rows = shape[0]
                if int(np.prod([d for d in shape if isinstance(d, int)])) >= MIN_ELEMENTS:
                    yield rows
