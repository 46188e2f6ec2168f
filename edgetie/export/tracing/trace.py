"""Trace a model with torch.export and convert it to onnx-ir graphs, weights by reference."""

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
from edgetie.export.patches.implementations import (
    announced_export,
    attention_implementation,
    experts_implementation,
)
from edgetie.export.patches.traceable import traceable
from edgetie.export.recurrence.scan import replace_states_by_scans
from edgetie.export.tasks.base import Graph, Task
from edgetie.export.tracing.exported_program import reset_after_failure, rewrite_for_onnx
from edgetie.export.tracing.plans import TracePlan
from edgetie.export.tracing.shape_constraints import ShapeConstraints, read_shape_constraints
from edgetie.progress import Progress
from edgetie.sources.source import Source

logger = logging.getLogger(__name__)

OPSET = 23
"""The first with the operators Attention, RMSNormalization and RotaryEmbedding."""


@dataclass
class Traced:
    """Graphs as torch's exporter leaves them.

    Attributes:
        models: by file name; their initializers point at the module's own memory.
        task: the traced task, perhaps for shorter sequences than the plan's.
        unfused: what is not fused, and why, for the report.
    """

    models: dict[str, ir.Model]
    task: Task
    unfused: list[str]


def trace(source: Source, plan: TracePlan, *, last_only: bool, progress: Progress) -> Traced:
    """Trace the graphs of a plan; ``last_only`` leaves logits of last tokens only.

    Raises:
        ExportError: if torch cannot trace or convert a graph.
        UnfusableError: if the plan does not suit the model.
    """
    task, models, unfused = plan.task, {}, list(plan.notes)
    sizes = _sizes(source.module) if source.kind == "factory" else ()
    with (
        announced_export(source),
        experts_implementation(source) as has_experts,
        attention_implementation(source, plan.attention),
    ):
        if has_experts:
            unfused.append("experts: their weights are gathered for each token")
        for graph in task.graphs(source.module, fused=plan.fused, last_only=last_only):
            models[graph.file], constraints = _trace_graph(graph, progress)
            longest = constraints.max_positions(task.max_positions, sizes)
            task = replace(task, max_positions=longest)
    return Traced(models, task, unfused)


def _sizes(module: torch.nn.Module) -> set[int]:
    """Collect the sizes of all axes of a module's tensors, a table of positions among them."""
    tensors = chain(module.parameters(), module.buffers())
    return {size for tensor in tensors for size in tensor.shape}


def _trace_graph(graph: Graph, progress: Progress) -> tuple[ir.Model, ShapeConstraints]:
    progress.stage("trace")
    with _quiet(), torch.no_grad(), traceable(graph.module):
        try:
            program = torch.export.export(
                graph.module.eval(), graph.arguments, dynamic_shapes=graph.shapes, strict=False
            )
        except Exception as error:
            for cause in _causes(error):
                if isinstance(cause, UnfusableError):
                    raise cause from (None if cause is error else error)
            raise ExportError(f"torch cannot trace it ({summarize(error)})") from error
    constraints = read_shape_constraints(program, graph)
    progress.stage("convert")
    model = _convert(program, graph.arguments)
    values = [*model.graph.inputs, *model.graph.outputs]
    for value, name in zip(values, [*graph.inputs, *graph.outputs], strict=True):
        value.name = name
    _name_dimensions(model, graph)
    replace_states_by_scans(model)
    for node in model.graph:
        if "edgetie.name" in node.metadata_props:
            node.name = node.metadata_props["edgetie.name"]
    if graph.finish:
        graph.finish(model)
    return model, constraints


def _name_dimensions(model: ir.Model, graph: Graph) -> None:
    """Rename torch's symbols (``s43``) after the dimensions of the inputs, in all shapes."""
    shapes = {value.name: value.shape for value in model.graph.inputs if value.shape is not None}
    names: dict[str, str] = {}
    for name, axis, dimension_name in graph.dimensions:
        dimension = shapes[name][axis]
        if not isinstance(dimension, int) and dimension.value is not None:
            names.setdefault(dimension.value, dimension_name)

    def rename(dimension: int | ir.SymbolicDim) -> int | str | None:
        symbol = dimension if isinstance(dimension, int) else dimension.value
        if not isinstance(symbol, str):
            return symbol
        return re.sub(r"\bs\d+\b", lambda match: names.get(match[0], match[0]), symbol)

    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([rename(dimension) for dimension in value.shape])


def _convert(
    program: torch.export.ExportedProgram, arguments: tuple[torch.Tensor, ...]
) -> ir.Model:
    """Convert an exported program to onnx-ir.

    torch decomposes a program by tracing it again, half of an export's time. That is done only if
    it cannot be converted as :func:`rewrite_for_onnx` leaves it.
    """
    if rewrite_for_onnx(program):
        decompose = program.run_decompositions
        program.run_decompositions = lambda *_, **__: program
        try:
            return _to_ir(program, arguments)
        except Exception:
            logger.debug("converting without decompositions failed", exc_info=True)
        program.run_decompositions = decompose
        reset_after_failure(program)
    try:
        return _to_ir(program, arguments)
    except Exception as error:
        innermost = list(_causes(error, explicit=True))[-1]  # the others are pages of advice
        raise ExportError(f"torch.onnx cannot convert it ({summarize(innermost)})") from error


def _to_ir(program: torch.export.ExportedProgram, arguments: tuple[torch.Tensor, ...]) -> ir.Model:
    with _quiet():
        converted = torch.onnx.export(
            program, arguments, dynamo=True, opset_version=OPSET, optimize=False, verbose=False
        )
    assert converted is not None
    return converted.model


def _causes(error: BaseException | None, *, explicit: bool = False) -> Iterator[BaseException]:
    """Iterate over an exception and its causes; ``explicit``: those after ``from`` only."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if explicit else error.__context__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter. What concerns the user is in the exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)
