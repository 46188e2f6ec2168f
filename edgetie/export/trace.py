"""Tracing: the wrapped model becomes an onnx-ir graph, weights by reference."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from edgetie.errors import ExportError
from edgetie.export import attention
from edgetie.export.attention import Unfusable
from edgetie.export.tasks import CausalLM, Task, cache_names
from edgetie.report.progress import Progress
from edgetie.sources import Source
from edgetie.sources.pretrained import first_line

OPSET = 23
"""Attention, RMSNormalization and RotaryEmbedding are operators from here on."""

_BATCH, _SEQUENCE, _PAST = 2, 3, 5  # example sizes; all three dimensions are dynamic


@dataclass
class Traced:
    """A graph as torch's exporter leaves it.

    Attributes:
        model: the graph; its initializers point at the module's own memory.
        unfused: what could not be expressed, and why, for the report.
    """

    model: ir.Model
    unfused: list[str]


def trace(source: Source, task: Task, *, last_only: bool, progress: Progress) -> Traced:
    """Trace ``source`` with fused attention, or without where that cannot be expressed.

    Raises:
        ExportError: if torch cannot trace or convert the model at all.
    """
    unfused: list[str] = []
    if task.why_plain:
        unfused.append(f"KV cache: {task.why_plain}")
    if task.caller == "transformers":
        try:
            with _implementation(source, attention.register()):
                return _trace(source, task, True, last_only, progress, unfused)
        except Unfusable as error:
            unfused.append(f"attention: {error}")
        return _trace(source, task, False, last_only, progress, unfused)
    try:
        return _trace(source, task, True, last_only, progress, unfused)
    except Unfusable as error:
        raise ExportError(f"{source.name}: its attention takes no KV cache ({error})") from error


@contextlib.contextmanager
def _implementation(source: Source, name: str) -> Iterator[None]:
    """Choose the attention implementation on the model's own configuration, and restore it."""
    before = source.config._attn_implementation
    try:
        try:
            _module(source).set_attn_implementation(name)
        except Exception as error:
            raise Unfusable(f"its attention cannot be replaced ({first_line(error)})") from error
        if source.config._attn_implementation != name:
            raise Unfusable("its attention cannot be replaced")
        yield
    finally:
        _module(source).set_attn_implementation(before)


def _module(source: Source) -> Any:
    """The module as what it is: a transformers model, whose methods ``nn.Module`` does not know."""
    return source.module


def _trace(
    source: Source,
    task: Task,
    fused: bool,
    last_only: bool,
    progress: Progress,
    unfused: list[str],
) -> Traced:
    wrapper = CausalLM(source.module, task, fused, last_only).eval()
    dtype = next(source.module.parameters()).dtype
    past = tuple(
        torch.zeros(_BATCH, layer.kv_heads, _PAST, layer.head_size, dtype=dtype)
        for layer in task.layers
        for _ in ("key", "value")
    )
    length = _PAST if past else 0
    arguments = (
        torch.ones(_BATCH, _SEQUENCE, dtype=torch.long),
        torch.ones(_BATCH, length + _SEQUENCE, dtype=torch.long),
        *past,
    )
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    # past + sequence, which torch.export cannot say: it is left to find out what holds
    total, past_length = torch.export.Dim.DYNAMIC, torch.export.Dim("past_sequence")
    shapes = (
        {0: batch, 1: sequence},
        {0: batch, 1: total if past else sequence},
        *((tuple({0: batch, 2: past_length} for _ in past),) if past else ()),
    )
    progress.stage("trace")
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(wrapper, arguments, dynamic_shapes=shapes, strict=False)
        except Unfusable:
            raise
        except Exception as error:
            cause = _unfusable_cause(error)
            if cause is not None:
                raise cause from error
            raise ExportError(
                f"{source.name}: torch cannot trace it ({first_line(error)})"
            ) from error
    progress.stage("convert")
    names = ["input_ids", "attention_mask", *cache_names(len(task.layers), "past_key_values")]
    outputs = ["logits", *cache_names(len(task.layers), "present")]
    model = _convert(source, program, arguments)
    for value, name in zip(model.graph.inputs, names, strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
    _name_dimensions(model)
    for node in model.graph:
        if "edgetie.name" in node.metadata_props:
            node.name = node.metadata_props["edgetie.name"]
    return Traced(model, unfused)


def _name_dimensions(model: ir.Model) -> None:
    """Call the symbols that torch made up (``s43``) by what they are, everywhere in the graph."""
    tokens, mask, *past = model.graph.inputs
    named = [(tokens, 0, "batch"), (tokens, 1, "sequence"), (mask, 1, "total_sequence")]
    if past:
        named.append((past[0], 2, "past_sequence"))
    names: dict[str, str] = {}
    for value, axis, name in named:
        assert value.shape is not None
        dimension = value.shape[axis]
        if not isinstance(dimension, int) and dimension.value is not None:
            names.setdefault(dimension.value, name)

    def renamed(dimension: int | ir.SymbolicDim) -> int | str | None:
        if isinstance(dimension, int) or dimension.value is None:
            return dimension if isinstance(dimension, int) else None
        return re.sub(r"\bs\d+\b", lambda match: names.get(match[0], match[0]), dimension.value)

    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([renamed(dimension) for dimension in value.shape])


def _unfusable_cause(error: BaseException | None) -> Unfusable | None:
    while error is not None:
        if isinstance(error, Unfusable):
            return error
        error = error.__cause__ or error.__context__
    return None


def _convert(
    source: Source, program: torch.export.ExportedProgram, arguments: tuple[torch.Tensor, ...]
) -> ir.Model:
    """ExportedProgram to onnx-ir.

    torch decomposes a program by tracing it again, half of an export's time. Programs of language
    models hardly need it: only ``aten.to`` has no ONNX form of its own. So the program is converted
    as it is, and decomposed only where that fails or an operator works in place.
    """
    if not _mutates(program):
        program.graph.eliminate_dead_code()
        for node in program.graph.nodes:
            if getattr(node.target, "overloadpacket", None) is torch.ops.aten.to:
                node.target = torch.ops.aten._to_copy.default
                node.args, node.kwargs = node.args[:1], {"dtype": node.meta["val"].dtype}
        decompose = program.run_decompositions
        program.run_decompositions = lambda *_, **__: program
        with contextlib.suppress(Exception):
            return _to_ir(program, arguments)
        program.run_decompositions = decompose
    try:
        return _to_ir(program, arguments)
    except Exception as error:
        raise ExportError(
            f"{source.name}: torch.onnx cannot convert it ({_operator_of(error)})"
        ) from error


def _mutates(program: torch.export.ExportedProgram) -> bool:
    return any(
        node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
        for node in program.graph.nodes
    )


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
    return first_line(inner)


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
