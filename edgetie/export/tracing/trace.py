"""Tracing: the wrapped model becomes an onnx-ir graph, weights by reference."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import onnx_ir as ir
import torch

from edgetie.errors import ExportError, UnfusableError, summarize
from edgetie.export.attention import transformers_attention
from edgetie.export.patches.implementations import (
    announced_export,
    attention_implementation,
    experts_implementation,
)
from edgetie.export.patches.traceable import traceable
from edgetie.export.recurrence.scan import replace_loops_by_scans
from edgetie.export.tasks.base import Graph, Task
from edgetie.export.tracing.exported_program import forget_failure, prepare
from edgetie.export.tracing.shape_constraints import Bounds, read_bounds
from edgetie.progress import Progress
from edgetie.sources.source import Source

OPSET = 23
"""Attention, RMSNormalization and RotaryEmbedding are operators from here on."""


@dataclass
class Traced:
    """Graphs as torch's exporter leaves them.

    Attributes:
        models: by file name; their initializers point at the module's own memory.
        task: what was traced: perhaps without a cache, perhaps for shorter sequences.
        unfused: what could not be expressed, and why, for the report.
    """

    models: dict[str, ir.Model]
    task: Task
    unfused: list[str]


_EAGER = "eager"  # as transformers calls attention written out


def trace(
    source: Source, task: Task, *, last_only: bool, fused: bool, progress: Progress
) -> Traced:
    """Trace ``source`` with fused attention; or without, where that cannot be expressed; or without
    a cache, where the model's cache cannot be traced either.

    Args:
        source: the model.
        task: what to trace.
        last_only: logits of each row's last token only.
        fused: whether attention may be one operator; otherwise it is written out.
        progress: told about each stage.

    Raises:
        ExportError: if torch cannot trace or convert the model at all, or not as it is asked for.
    """
    if not fused:
        return _trace_plain(source, task, last_only, progress)
    unfused: list[str] = []
    if task.no_cache_reason:
        unfused.append(f"KV cache: {task.no_cache_reason}")
    with announced_export(source), experts_implementation(source) as has_experts:
        if has_experts:
            unfused.append("experts: their weights are gathered for each token")
        if task.replaces_attention:
            try:
                with attention_implementation(source, transformers_attention.register()):
                    return _trace_all(source, task, True, last_only, progress, unfused)
            except (UnfusableError, ExportError) as error:
                unfused.append(f"attention: {_reason(source, error)}")
        try:
            fused = not task.replaces_attention
            return _trace_all(source, task, fused, last_only, progress, unfused)
        except (UnfusableError, ExportError) as error:
            why = _reason(source, error)
            plain = task.without_cache(why)
            if plain is None:
                raise ExportError(f"{source.name}: {why}") from error
        try:
            unfused.append(f"KV cache: {why}")
            return _trace_all(source, plain, True, last_only, progress, unfused)
        except (UnfusableError, ExportError) as error:
            raise ExportError(f"{source.name}: {_reason(source, error)}") from error


def _trace_plain(source: Source, task: Task, last_only: bool, progress: Progress) -> Traced:
    """Attention as transformers writes it out, the cache as inputs and outputs of their own."""
    hint = f"{source.name}: cannot be exported in operators of the standard with a cache"
    if not task.cache:
        raise ExportError(
            f"{source.name}: operators of the standard alone are for decoders with a cache; leave "
            "out --target"
        )
    if not task.replaces_attention:
        raise ExportError(f"{hint}: its attention cannot be chosen; leave out --target")
    try:
        with announced_export(source), attention_implementation(source, _EAGER):
            return _trace_all(source, task, False, last_only, progress, ["attention: written out"])
    except UnfusableError as error:
        raise ExportError(f"{hint}: {error}") from error


def _reason(source: Source, error: Exception) -> str:
    return str(error).removeprefix(f"{source.name}: ")


def _trace_all(
    source: Source,
    task: Task,
    fused: bool,
    last_only: bool,
    progress: Progress,
    unfused: list[str],
) -> Traced:
    models = {}
    for graph in task.graphs(source.module, fused=fused, last_only=last_only):
        models[graph.file], bounds = _trace(source, graph, progress)
        longest = bounds.longest(
            task.max_positions, _sizes(source) if source.kind == "factory" else ()
        )
        task = replace(task, max_positions=longest)
    return Traced(models, task, unfused)


def _sizes(source: Source) -> set[int]:
    """The sizes of all axes of a module's tensors, a table of positions among them."""
    tensors = chain(source.module.parameters(), source.module.buffers())
    return {size for tensor in tensors for size in tensor.shape}


def _trace(source: Source, graph: Graph, progress: Progress) -> tuple[ir.Model, Bounds]:
    progress.stage("trace")
    with _quiet(), torch.no_grad(), traceable(graph.module):
        try:
            program = torch.export.export(
                graph.module.eval(), graph.arguments, dynamic_shapes=graph.shapes, strict=False
            )
        except UnfusableError:
            raise
        except Exception as error:
            cause = _unfusable_cause(error)
            if cause is not None:
                raise cause from error
            raise ExportError(
                f"{source.name}: torch cannot trace it ({summarize(error)})"
            ) from error
    bounds = read_bounds(program, graph)
    progress.stage("convert")
    model = _convert(source, program, graph.arguments)
    for value, name in zip(model.graph.inputs, graph.inputs, strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, graph.outputs, strict=True):
        value.name = name
    _name_dimensions(model, graph)
    replace_loops_by_scans(model)
    for node in model.graph:
        if "edgetie.name" in node.metadata_props:
            node.name = node.metadata_props["edgetie.name"]
    return model, bounds


def _name_dimensions(model: ir.Model, graph: Graph) -> None:
    """Call the symbols that torch made up (``s43``) by what they are, everywhere in the graph."""
    inputs = {str(value.name): value for value in model.graph.inputs}
    names: dict[str, str] = {}
    for name, axis, dimension_name in graph.dimensions:
        shape = inputs[name].shape
        assert shape is not None
        dimension = shape[axis]
        if not isinstance(dimension, int) and dimension.value is not None:
            names.setdefault(dimension.value, dimension_name)

    def renamed(dimension: int | ir.SymbolicDim) -> int | str | None:
        if isinstance(dimension, int) or dimension.value is None:
            return dimension if isinstance(dimension, int) else None
        return re.sub(r"\bs\d+\b", lambda match: names.get(match[0], match[0]), dimension.value)

    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([renamed(dimension) for dimension in value.shape])


def _unfusable_cause(error: BaseException | None) -> UnfusableError | None:
    while error is not None:
        if isinstance(error, UnfusableError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _convert(
    source: Source, program: torch.export.ExportedProgram, arguments: tuple[torch.Tensor, ...]
) -> ir.Model:
    """ExportedProgram to onnx-ir.

    torch decomposes a program by tracing it again, half of an export's time. Programs of language
    models hardly need it: few operators have no ONNX form of their own, and what else computes the
    same is known (:mod:`exported_program`). So the program is converted as it is, and
    decomposed only where that fails or an operator works in place.
    """
    if prepare(program):
        decompose = program.run_decompositions
        program.run_decompositions = lambda *_, **__: program
        with contextlib.suppress(Exception):
            return _to_ir(program, arguments)
        program.run_decompositions = decompose
        forget_failure(program)
    try:
        return _to_ir(program, arguments)
    except Exception as error:
        raise ExportError(
            f"{source.name}: torch.onnx cannot convert it ({_operator_of(error)})"
        ) from error


def _to_ir(program: torch.export.ExportedProgram, arguments: tuple[torch.Tensor, ...]) -> ir.Model:
    with _quiet():
        converted = torch.onnx.export(
            program, arguments, dynamo=True, opset_version=OPSET, optimize=False, verbose=False
        )
    assert converted is not None
    return converted.model


def _operator_of(error: BaseException) -> str:
    """The innermost message: torch.onnx wraps it in pages of advice."""
    inner: BaseException = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    return summarize(inner)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter warns about optional packages, and prints a graph that it cannot finish;
    what concerns the user is in the exceptions.
    """
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)
