"""Tied weights: find the initializers with several uses, and verify that they stay tied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetie.errors import TieError
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.external_data import byte_range
from edgetie.graph.matching import attribute_ints, operator, producer
from edgetie.ties.equal_weights import equal_groups

if TYPE_CHECKING:
    import onnx_ir as ir

_ADDED_CONSTANTS = ("rotate.", "rotary.")  # prefixes of constants that edgetie adds to a graph
_BLOCK_QUANTIZED_OPERATORS = {"MatMulNBits", "GatherBlockQuantized"}
VIEW_OPERATORS = {"Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze"}
"""Operators that change the shape, layout or type of a weight and nothing else."""
JOINT = "+"
"""Stands between the names of weights in the name of one that they were packed to."""


@dataclass(frozen=True)
class Use:
    """One use of a tied weight.

    Attributes:
        op_type: the operator, after those that only change shape, layout or type.
        node: the name of the node.
        input: the index of the node's input.
        transposed: whether a Transpose or an attribute (Gemm's ``transB``) swaps the axes.
        file: the ONNX file, in bundles of several.
    """

    op_type: str
    node: str
    input: int
    transposed: bool
    file: str = ""


@dataclass(frozen=True)
class TieGroup:
    """One initializer with several uses.

    Attributes:
        name: the initializer.
        shape: its dimensions.
        dtype: ONNX data type name, e.g. ``FLOAT``.
        bytes: its size.
        uses: every use, in graph order.
        parameters: names of the torch parameters it stands for, if a module was the source.
        data: ``file``, ``offset`` and ``length`` of its external data.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    uses: tuple[Use, ...]
    parameters: tuple[str, ...] = ()
    data: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> TieGroup:
        uses = tuple(Use(**use) for use in data["uses"])
        shape, parameters = tuple(data["shape"]), tuple(data.get("parameters", ()))
        return TieGroup(**{**data, "shape": shape, "uses": uses, "parameters": parameters})


def _uses(value: ir.Value, transposed: bool = False) -> Iterator[tuple[ir.Node, Use]]:
    """Yield every use of an initializer, followed through view operators."""
    for node, index in value.uses():
        op_type = operator(node)
        if op_type in VIEW_OPERATORS and index == 0:
            swaps = op_type == "Transpose" and _swaps_last_axes(node)
            yield from _uses(node.outputs[0], transposed != swaps)
        else:
            flag = "transA" if index == 0 else "transB"
            swaps = op_type in ("Gemm", "FusedMatMul") and node.attributes.get_int(flag, 0) != 0
            yield node, Use(op_type, node.name or "", index, transposed != swaps)


def _swaps_last_axes(node: ir.Node) -> bool:
    perm = attribute_ints(node, "perm")
    return perm is None or perm[-2:] != sorted(perm)[-2:]


def _aliases(model: ir.Model) -> dict[str, list[ir.Value]]:
    """Map names to lists of initializers that lie over the same bytes of a file."""
    by_range: dict[tuple[str, int, int], list[ir.Value]] = {}
    for value in model.graph.initializers.values():
        source = byte_range(value)
        if source is not None:
            by_range.setdefault(source, []).append(value)
    return {str(v.name): group for group in by_range.values() if len(group) > 1 for v in group}


def _all_uses(
    value: ir.Value, aliases: dict[str, list[ir.Value]], *, residuals: bool = False
) -> list[tuple[ir.Node, Use]]:
    """List the uses of a value and of every other entry over its bytes.

    The scales of quantized weights do not count as uses. Integer products with the rounding
    residual of activations count as part of the main product, unless ``residuals`` is set.
    """
    return [
        (node, use)
        for entry in aliases.get(str(value.name), [value])
        for node, use in _uses(entry)
        if not (use.op_type in _BLOCK_QUANTIZED_OPERATORS and use.input >= 2)
        and (residuals or not _reads_residual(node))
    ]


def _reads_residual(node: ir.Node) -> bool:
    """Whether the node is ``MatMulInteger(QuantizeLinear(x - Round(x)), …)``."""
    if operator(node) != "MatMulInteger":
        return False
    quantize = producer(node.inputs[0], "QuantizeLinear")
    subtract = producer(quantize.inputs[0], "Sub") if quantize else None
    return subtract is not None and producer(subtract.inputs[1], "Round") is not None


def all_initializers(model: ir.Model) -> list[ir.Value]:
    """List the initializers of a graph and of its subgraphs."""
    return [value for graph in model.graphs() for value in graph.initializers.values()]


def nodes_using(model: ir.Model, name: str) -> list[ir.Node]:
    """List the nodes that use an initializer or another entry over its bytes.

    They are in the order of the graph, followed by those of subgraphs.
    """
    uses = _all_uses(model.graph.initializers[name], _aliases(model), residuals=True)
    nodes = {id(node) for node, _ in uses}
    return [node for graph in model.graphs() for node in graph if id(node) in nodes]


def find_ties(model: ir.Model, parameters: Iterable[tuple[str, ...]] = ()) -> list[TieGroup]:
    """Find the initializers of a graph that have more than one use, largest first.

    Args:
        model: any graph.
        parameters: groups of torch parameter names (:func:`tied_parameters`), recorded with the
            initializer that has one of the names.
    """
    return find_shared_ties({"": model}, parameters)


def _weights(model: ir.Model) -> Iterator[tuple[str, ir.Value, tuple[Use, ...]]]:
    """Yield large matrices and their uses, one for all entries over the same bytes."""
    aliases = _aliases(model)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not _may_be_tied(name, tensor):
            continue
        if name not in aliases or aliases[name][0] is value:
            yield name, value, tuple(use for _, use in _all_uses(value, aliases))


def _data(value: ir.Value) -> dict[str, Any] | None:
    source = byte_range(value)
    if source is None:
        return None
    return {"file": Path(source[0]).name, "offset": source[1], "length": source[2]}


def share_across(models: Mapping[str, ir.Model]) -> dict[ir.Value, ir.Value]:
    """Find initializers of later models that equal one of an earlier model, and name them alike.

    Returns:
        Each of them, and the initializer whose bytes it shares.
    """
    same: dict[ir.Value, ir.Value] = {}
    if len(models) == 1:
        return same
    owner = {v: model for model in models.values() for v in model.graph.initializers.values()}
    for first, *duplicates in equal_groups(owner):
        for duplicate in duplicates:
            value, graph = duplicate.value, owner[duplicate.value].graph
            if duplicate.transposed or owner[value] is owner[first.value]:
                continue
            same[value] = first.value
            if str(first.value.name) not in graph.initializers:
                value.name = first.value.name
    return same


def find_shared_ties(
    models: Mapping[str, ir.Model], parameters: Iterable[tuple[str, ...]] = ()
) -> list[TieGroup]:
    """Find the tie groups of models that share one data file, largest first.

    Args:
        models: by file name. A weight is shared across them if its entries lie over the same bytes.
        parameters: as in :func:`find_ties`.
    """
    parameters = list(parameters)
    groups: dict[str, TieGroup] = {}
    for file, model in models.items():
        for name, value, uses in _weights(model):
            if len(models) > 1:
                uses = tuple(replace(use, file=file) for use in uses)
            earlier = groups.get(name)
            if earlier is None:
                groups[name] = _group(name, value, uses, parameters)
            elif earlier.data == _data(value) is not None:
                groups[name] = replace(earlier, uses=earlier.uses + uses)
    tied = [group for group in groups.values() if len(group.uses) > 1]
    return sorted(tied, key=lambda group: -group.bytes)


def ties_of_file(ties: Iterable[TieGroup], file: str) -> list[TieGroup]:
    """Return the groups with uses in one file, with those uses only."""
    groups = [
        replace(group, uses=tuple(use for use in group.uses if use.file in ("", file)))
        for group in ties
    ]
    return [group for group in groups if group.uses]


def _may_be_tied(name: str, tensor: ir.TensorProtocol) -> bool:
    """Whether an initializer is a large matrix.

    Vectors may be equal by chance: norms start as ones, biases as zeros.
    """
    axes = sum(size != 1 for size in tensor.shape.numpy())
    return tensor.size >= MIN_ELEMENTS and axes > 1 and not name.startswith(_ADDED_CONSTANTS)


def _group(
    name: str, value: ir.Value, uses: tuple[Use, ...], parameters: Iterable[tuple[str, ...]]
) -> TieGroup:
    tensor = value.const_value
    assert tensor is not None
    members = next((group for group in parameters if is_named(name, group)), ())
    shape = tuple(tensor.shape.numpy())
    return TieGroup(
        name, shape, tensor.dtype.name, tensor.nbytes, uses, tuple(members), _data(value)
    )


def is_named(initializer: str, group: tuple[str, ...]) -> bool:
    """Whether an initializer has one of the names of a torch parameter."""
    return any(initializer == name or initializer.endswith("." + name) for name in group)


def equal_initializers(model: ir.Model, like: Sequence[str] | None = None) -> list[list[str]]:
    """Group the initializers with equal elements: as they are, reshaped, or transposed.

    Args:
        model: any graph, and its subgraphs.
        like: only look for copies of these initializers. ``None`` looks at all.
    """
    values = all_initializers(model)
    if like is not None:
        tensors = [model.graph.initializers[name].const_value for name in like]
        sizes = {(tensor.dtype, tensor.size) for tensor in tensors if tensor is not None}
        values = [
            value
            for value in values
            if value.const_value is not None
            and (value.const_value.dtype, value.const_value.size) in sizes
        ]
    return [[str(copy.value.name) for copy in group] for group in equal_groups(values)]


def verify_ties(model: ir.Model, ties: Iterable[TieGroup], where: str = "the graph") -> None:
    """Check that every tied weight is still one initializer with as many uses as before.

    Args:
        model: the graph to check.
        ties: the groups it must keep. The names must be the same, layout and type may differ.
        where: what produced the graph, for the error's text (a pass, a file, ONNX Runtime).

    Raises:
        TieError: naming the weight, the copies and ``where``.
    """
    expected = list(ties)
    names = [group.name for group in expected]
    aliases = _aliases(model)
    for group in expected:
        value = model.graph.initializers.get(group.name)
        if value is None:
            raise TieError(f"{where}: the tied weight {group.name} is gone from the graph")
        uses = _all_uses(value, aliases)
        if len(uses) < len(group.uses):
            rest = ", ".join(f"{use.op_type} {use.node}" for _, use in uses) or "none"
            raise TieError(
                f"{where}: {group.name} had {len(group.uses)} uses and has {len(uses)} ({rest}); "
                "the others got a copy"
            )
    for copies in equal_initializers(model, like=names):
        tied = next((name for name in copies if name in names), None)
        if tied is not None:
            others = ", ".join(name for name in copies if name != tied)
            raise TieError(f"{where}: {tied} is in the graph again as {others}")
