"""Merge the duplicate weights of ONNX files, which may come from any exporter."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.assemble import assemble_bundle
from edgetie.bundle.atomic import atomic_directory, atomic_files
from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.encoder_decoder import UnknownFormError
from edgetie.bundle.manifest import Manifest
from edgetie.bundle.names import DATA, MANIFEST
from edgetie.errors import BundleError, TieError
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.external_data import external_data_files
from edgetie.graph.matching import operator
from edgetie.graph.model_files import load_model, write_models
from edgetie.harness.ties.equivalence import Equivalence, choose_length, compare_files
from edgetie.passes.base import run_passes
from edgetie.passes.lift_weights import LiftWeights
from edgetie.passes.merge_duplicates import (
    MergeDuplicates,
    can_read_transposed,
    is_input_or_output,
    move_to_main_graph,
    read_transposed,
)
from edgetie.passes.merge_near_duplicates import (
    MergeNearDuplicates,
    NearCopy,
    check_max_distance,
    near_copies,
)
from edgetie.passes.tied_head_gemm import TiedHeadGemm
from edgetie.progress import Stages
from edgetie.ties.equal_weights import equal_groups
from edgetie.ties.groups import TieGroup, all_initializers, find_ties, verify_ties

_TOLERANCE = 1e-5  # relative: the same sums in another order


@dataclass(frozen=True)
class RepairReport:
    """What :func:`tie_model` did.

    Attributes:
        path: the file it wrote, or the directory.
        task: the task of the bundle it wrote; ``None`` if it wrote files without a manifest.
        no_bundle: why several files are not a bundle; ``None`` otherwise.
        merged: removed initializers, each with the one that replaced it. Of several files, every
            name in this report starts with the name of its file.
        shared: initializers that share the bytes of another one, in another shape or file, each
            with that other.
        near: copies that are nearly equal to an embedding table, whether merged or not.
        merged_near: names of those that were merged.
        skipped: copies that could not be merged, and why.
        ties: the tied weights of the new file.
        bytes_before, bytes_after: sizes of the files, external data included.
        outputs: each new file's outputs compared with the old one's.
        seconds: the time of each stage.
    """

    path: Path
    task: str | None
    no_bundle: str | None
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
    """Merge every weight that ONNX files store more than once into one byte range.

    Copies are found by content. Nearly equal ones, of which a converter rounded one, are reported.

    Args:
        sources: an ``.onnx`` file or a directory with one, or several files that belong together,
            such as an encoder and its decoders.
        output: the ``.onnx`` file to write. Its weights go to a file of that name with ``.data``
            added. Any other name is that of a bundle, with the settings and tokenizer files that
            stand next to the sources. Several files that are not certain to be an encoder and its
            decoders keep their names there, without a manifest, and share ``model.onnx.data``.
        max_distance: also merge copies up to this relative distance (Frobenius norm of the
            difference over that of the table), at most 0.1. This changes what the model computes.
        force: replace existing files or an existing bundle.
        progress: told about each stage.

    Raises:
        BundleError: if a file cannot be read, ``output`` is in the way or the disk is full, or a
            file that would be replaced belongs to another model too, or it is not certain what a
            single file for a bundle computes.
        EdgetieError: if ``max_distance`` is out of range.
        TieError: if a new file's outputs differ from the old one's.
    """
    stages, target = progress or Stages(), Path(output)
    check_max_distance(max_distance)
    stages.stage("read")
    paths = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    several = len(paths) > 1
    originals = [_only_model(path) for path in paths]
    is_file = target.suffix == ".onnx" and not several
    names = [target.name] if is_file else [path.name for path in originals]
    _check_names(names)
    if is_file:
        _check_target(target, originals[0])
    files = {file for path in originals for file in (path, *external_data_files(path))}
    bytes_before = sum(file.stat().st_size for file in files)
    place = atomic_files if is_file else atomic_directory
    task = no_bundle = None
    with place(target, force=force) as directory:
        with _blame_files(originals):
            stages.stage("find copies")
            models = [
                _Model(path, name, several, max_distance)
                for path, name in zip(originals, names, strict=True)
            ]
            same = _share_bytes(models)
            stages.stage("write")
            data = f"{target.name}.data" if is_file else DATA
            graphs = {model.name: model.graph for model in models}
            for graph in graphs.values():
                common.NameFixPass()(graph)
            write_models(graphs, directory, data=data, same=same, progress=stages)
        ties = [group for model in models for group in model.verify(directory)]
        bytes_after = sum(file.stat().st_size for file in directory.iterdir())
        stages.stage("compare outputs")
        outputs = [model.compare(directory) for model in models]
        if not is_file:
            stages.stage("bundle")
            try:
                folders = dict.fromkeys(path.parent for path in originals)
                task = assemble_bundle(directory, folders, target.name)
            except UnknownFormError as error:
                if not several:
                    raise BundleError(f"{error}; name an output that ends in .onnx") from error
                no_bundle = str(error)
    stages.finish()
    return RepairReport(
        path=target,
        task=task,
        no_bundle=no_bundle,
        merged={key: name for model in models for key, name in model.merged.items()},
        shared={key: name for model in models for key, name in model.shared.items()},
        near=tuple(copy for model in models for copy in model.near),
        merged_near=tuple(name for model in models for name in model.merged_near),
        skipped=tuple(text for model in models for text in model.skipped),
        ties=tuple(ties),
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        outputs=tuple(outputs),
        seconds=dict(stages.seconds),
    )


def _only_model(source: str | os.PathLike[str]) -> Path:
    """Open a file, or a directory with one."""
    paths = open_bundle(source).model_paths
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise BundleError(f"{source}: holds several models; name the files themselves: {names}")
    return paths[0]


def _check_names(names: list[str]) -> None:
    """Refuse names that clash."""
    if len({*names, DATA}) != len(names) + 1:
        raise BundleError(f"two of the files, or one and {DATA}, have the same name; rename one")


def _check_target(target: Path, source: Path) -> None:
    """Refuse to replace files of a bundle or of other models."""
    data, manifest_path = target.parent / f"{target.name}.data", target.parent / MANIFEST
    if target.exists() and manifest_path.is_file():
        text = manifest_path.read_text(encoding="utf-8", errors="replace")
        if {target.name, data.name} & Manifest.from_json(text, manifest_path).files.keys():
            raise BundleError(f"{target}: is part of a bundle; choose another output")
    for model in {*target.parent.glob("*.onnx"), source} if data.exists() else ():
        if not model.is_file() or (target.exists() and model.samefile(target)):
            continue
        with contextlib.suppress(BundleError):  # an unreadable file has no data to lose
            if any(file.exists() and file.samefile(data) for file in external_data_files(model)):
                break
    else:
        return
    raise BundleError(f"{data}: {model.name} reads it too; choose another output")


@contextlib.contextmanager
def _blame_files(paths: Sequence[Path]) -> Iterator[None]:
    """Turn the errors that a graph raises if it breaks the rules of ONNX into a BundleError."""
    invalid = (ValueError, TypeError, IndexError, KeyError, AttributeError, EOFError, OSError)
    try:
        yield
    except invalid as error:
        if getattr(error, "errno", None) is not None:
            raise
        why = " ".join(str(error).split())[:200] or type(error).__name__
        names = ", ".join(map(str, paths))
        raise BundleError(f"{names}: not a valid ONNX model ({why}); export it again") from error


class _Model:
    """The model of ``path``, to be written as ``name``, and what was merged within it."""

    def __init__(self, path: Path, name: str, several: bool, max_distance: float) -> None:
        self.path, self.name, self.several = path, name, several
        self.graph = load_model(path)
        self.length = choose_length(self.graph, path)
        self.vocabulary = _vocabulary(self.graph)
        self.skipped: list[str] = []
        lift, exact = LiftWeights(), MergeDuplicates()
        run_passes(self.graph, [], [lift, exact])
        copies = near_copies(self.graph)
        near = [c for c in copies if c.distance <= max_distance]
        nearest = MergeNearDuplicates(near)
        run_passes(self.graph, [], [nearest])
        self.fuse_heads()
        self.aliases, self.has_copies = exact.aliases, bool(exact.skipped)
        label = self.label
        self.merged = {label(old): label(new) for old, new in exact.merged.items()}
        self.shared = {label(copy.name): label(old.name) for copy, old in exact.aliases.items()}
        self.near = [replace(c, name=label(c.name), table=label(c.table)) for c in copies]
        self.merged_near = [label(name) for name in nearest.merged]
        self.skipped += map(label, [*lift.skipped, *exact.skipped])

    def label(self, name: object) -> str:
        """Return a name or description as the report gives it."""
        return f"{self.name}: {name}" if self.several else f"{name}"

    def fuse_heads(self) -> None:
        """Rewrite MatMuls with a transposed table, which ONNX Runtime would copy."""
        heads = TiedHeadGemm()
        run_passes(self.graph, [], [heads])  # ties are verified in the written file
        self.skipped += map(self.label, heads.skipped)

    def verify(self, directory: Path) -> list[TieGroup]:
        """Find the ties of the written file, and check them unless copies had to stay."""
        model = load_model(directory / self.name)
        ties = find_ties(model)
        if not self.has_copies:
            verify_ties(model, ties, where=self.name)
        file = self.name if self.several else ""
        return [
            replace(group, uses=tuple(replace(use, file=file) for use in group.uses))
            for group in ties
        ]

    def compare(self, directory: Path) -> Equivalence:
        """Compare the outputs of the old and the new file. Only near copies may change them."""
        outputs = compare_files(self.path, directory / self.name, self.vocabulary, self.length)
        broken = not np.isfinite(outputs.max_abs_error) and outputs.runs_before
        if (broken or not self.merged_near) and outputs.relative_error > _TOLERANCE:
            raise TieError(
                f"{self.path}: tied, its outputs differ by {outputs.relative_error:.1e} of "
                f"the largest ({outputs.reason or 'they should not'}); nothing was written"
            )
        return outputs


def _share_bytes(models: list[_Model]) -> dict[ir.Value, ir.Value]:
    """Map initializers to those whose bytes they share, within a file and across files."""
    same: dict[ir.Value, ir.Value] = {}
    owners: dict[ir.Value, _Model] = {}
    for model in models:
        same |= model.aliases
        owners |= dict.fromkeys(all_initializers(model.graph), model)
    if len(models) == 1:
        return same
    for first, *copies in equal_groups(value for value in owners if value not in same):
        label = owners[first.value].label(first.value.name)
        for copy in copies:
            value, transposed = copy
            model = owners[value]
            if transposed and is_input_or_output(value, model.graph):
                model.skipped.append(model.label(f"{value.name}: is an input or output itself"))
                continue
            if transposed and not can_read_transposed(value, first.value):
                model.skipped.append(model.label(f"{value.name}: is {label} in another shape"))
                continue
            model.shared[model.label(value.name)] = label
            if transposed:
                move_to_main_graph(model.graph, value)
                value = read_transposed(model.graph.graph, value, first.value)
                model.fuse_heads()
            same[value] = first.value
    return same


def _vocabulary(model: ir.Model) -> int:
    """Return the number of rows of the smallest embedding table."""
    nodes = [node for graph in model.graphs() for node in graph if node.inputs]
    tables = [node.inputs[0] for node in nodes if operator(node).startswith("Gather")]
    shapes = [list(table.shape or ()) for table in tables if table is not None]
    return min(
        (
            shape[0]
            for shape in shapes
            if len(shape) > 1 and isinstance(shape[0], int)
            and math.prod(size for size in shape if isinstance(size, int)) >= MIN_ELEMENTS
        ),
        default=2,
    )  # fmt: skip
