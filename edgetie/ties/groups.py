"""Tied weights: one parameter, several uses.

A :class:`TieGroup` names a shared initializer of a graph and its uses, seen through the operators
that only change its form (Transpose, Reshape, Cast, Identity). Every pass, the finished file and
ONNX Runtime's own optimized graph are held against the same groups: :func:`verify_ties` raises
where one matrix became two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetie.errors import TieError
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.external_data import byte_range
from edgetie.graph.operators import operator
from edgetie.ties.equal_weights import equal_groups

if TYPE_CHECKING:
    import onnx_ir as ir

OWN_CONSTANTS = ("rotate.", "rotary.")
"""Names of the constants that edgetie itself puts into a graph begin so; they are no weights."""

_CODE_READERS = {"MatMulNBits", "GatherBlockQuantized"}
FORM_CHANGES = {"Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze"}
"""Operators that change the form of a weight and nothing else."""


@dataclass(frozen=True)
class Use:
    """One use of a tied weight: operator, node name, input index, and whether it is transposed.

    ``file`` names the ONNX file, in bundles of several.

    ``transposed`` says whether the operator sees the matrix with its axes swapped, by a Transpose
    in front of it or by its own attribute (Gemm's ``transB``).
    """

    op_type: str
    node: str
    input: int
    transposed: bool
    file: str = ""


@dataclass(frozen=True)
class TieGroup:
    """One initializer that stands for several uses.

    Attributes:
        name: the initializer.
        shape: its dimensions.
        dtype: ONNX data type name, e.g. ``FLOAT``.
        bytes: its size.
        uses: every use, in graph order.
        parameters: names of the torch parameters it stands for, where a module was the source.
        data: where it lies: ``file``, ``offset`` and ``length`` of its external data.
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
        return TieGroup(
            name=data["name"],
            shape=tuple(data["shape"]),
            dtype=data["dtype"],
            bytes=data["bytes"],
            uses=tuple(Use(**use) for use in data["uses"]),
            parameters=tuple(data.get("parameters", ())),
            data=data.get("data"),
        )


def _uses(value: ir.Value) -> list[tuple[ir.Node, Use]]:
    """Every use of an initializer, followed through operators that only change its form."""
    found: list[tuple[ir.Node, Use]] = []

    def follow(current: ir.Value, swapped: bool) -> None:
        for node, index in current.uses():
            if operator(node) in FORM_CHANGES and index == 0:
                swap = operator(node) == "Transpose" and _swaps_last_axes(node)
                follow(node.outputs[0], swapped != swap)
            else:
                own = operator(node) in ("Gemm", "FusedMatMul") and _flag(
                    node, "transA" if index == 0 else "transB"
                )
                use = Use(operator(node), node.name or "", index, swapped != own)
                found.append((node, use))

    follow(value, False)
    return found


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and attribute.as_int() != 0


def _swaps_last_axes(node: ir.Node) -> bool:
    attribute = node.attributes.get("perm")
    return attribute is None or list(attribute.as_ints())[-2:] != sorted(attribute.as_ints())[-2:]


def _aliases(model: ir.Model) -> dict[str, list[ir.Value]]:
    """Initializers that lie over the same bytes of a file: by the name of each, all of them."""
    by_range: dict[tuple[str, int, int], list[ir.Value]] = {}
    for value in model.graph.initializers.values():
        where = byte_range(value)
        if where is not None:
            by_range.setdefault(where, []).append(value)
    return {str(v.name): group for group in by_range.values() if len(group) > 1 for v in group}


def _all_uses(
    value: ir.Value, aliases: dict[str, list[ir.Value]], *, parts: bool = False
) -> list[tuple[ir.Node, Use]]:
    """Uses of a value and of every other entry over its bytes, scales of codes left out.

    Integer products with what rounding left of activations count with those of the rounded ones,
    unless all ``parts`` are asked for.
    """
    values = aliases.get(str(value.name), [value])
    return [
        (node, use)
        for entry in values
        for node, use in _uses(entry)
        if not (use.op_type in _CODE_READERS and use.input >= 2) and (parts or not _is_rest(node))
    ]


def _is_rest(node: ir.Node) -> bool:
    """Whether it is ``MatMulInteger(QuantizeLinear(x - Round(x)), …)``."""
    for op_type in ("MatMulInteger", "QuantizeLinear", "Sub"):
        if operator(node) != op_type:
            return False
        value = node.inputs[1 if op_type == "Sub" else 0]
        made = value.producer() if value is not None else None
        if made is None:
            return False
        node = made
    return operator(node) == "Round"


def all_initializers(model: ir.Model) -> list[ir.Value]:
    """The initializers of a graph and of its subgraphs."""
    return [value for graph in model.graphs() for value in graph.initializers.values()]


def nodes_using(model: ir.Model, name: str) -> list[ir.Node]:
    """The nodes that use an initializer, or another entry over its bytes, in the order of the
    graph; behind them those of subgraphs.
    """
    uses = _all_uses(model.graph.initializers[name], _aliases(model), parts=True)
    wanted = {id(node) for node, _ in uses}
    return [node for graph in model.graphs() for node in graph if id(node) in wanted]


def find_ties(model: ir.Model, parameters: Iterable[tuple[str, ...]] = ()) -> list[TieGroup]:
    """The tie groups of a graph: initializers with more than one use, largest first.

    Args:
        model: any graph.
        parameters: groups of torch parameter names (:func:`tied_parameters`), to record beside
            the initializer that carries one of the names.
    """
    parameters = list(parameters)
    groups = [
        _group(name, value, uses, parameters)
        for name, value, uses in _weights(model)
        if len(uses) > 1
    ]
    return sorted(groups, key=lambda group: -group.bytes)


def _weights(model: ir.Model) -> Iterator[tuple[str, ir.Value, tuple[Use, ...]]]:
    """Matrices of some size and their uses; of entries over the same bytes the first."""
    aliases = _aliases(model)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not _may_be_tied(name, tensor):
            continue
        if name not in aliases or aliases[name][0] is value:
            yield name, value, tuple(use for _, use in _all_uses(value, aliases))


def _data(value: ir.Value) -> dict[str, Any] | None:
    where = byte_range(value)
    if where is None:
        return None
    return {"file": Path(where[0]).name, "offset": where[1], "length": where[2]}


def share_across(models: Mapping[str, ir.Model]) -> dict[ir.Value, ir.Value]:
    """Initializers of later models that hold what one of an earlier model does: each of them, and
    that one. They take over its name, so that a weight is called the same in every file.
    """
    same: dict[ir.Value, ir.Value] = {}
    if len(models) == 1:
        return same
    owner = {v: model for model in models.values() for v in model.graph.initializers.values()}
    for first, *twins in equal_groups(owner):
        for twin in twins:
            graph = owner[twin.value].graph
            if twin.form == "transposed" or owner[twin.value] is owner[first.value]:
                continue
            same[twin.value] = first.value
            if str(first.value.name) not in graph.initializers:
                graph.initializers.pop(str(twin.value.name))
                twin.value.name = first.value.name
                graph.register_initializer(twin.value)
    return same


def find_shared_ties(
    models: Mapping[str, ir.Model], parameters: Iterable[tuple[str, ...]] = ()
) -> list[TieGroup]:
    """The tie groups of models that were written into one data file, largest first.

    Args:
        models: by file name; a weight is shared across them if its entries lie over the same bytes.
        parameters: as in :func:`find_ties`.
    """
    parameters = list(parameters)
    if len(models) == 1:
        return find_ties(next(iter(models.values())), parameters)
    found: dict[str, TieGroup] = {}
    for file, model in models.items():
        for name, value, used in _weights(model):
            uses = tuple(replace(use, file=file) for use in used)
            known = found.get(name)
            if known is not None and known.data == _data(value) is not None:
                found[name] = replace(known, uses=known.uses + uses)
            elif known is None:
                found[name] = _group(name, value, uses, parameters)
    groups = [group for group in found.values() if len(group.uses) > 1]
    return sorted(groups, key=lambda group: -group.bytes)


def ties_of_file(ties: Iterable[TieGroup], file: str) -> list[TieGroup]:
    """The groups with uses in one file, with those uses only."""
    kept = [
        replace(group, uses=tuple(use for use in group.uses if use.file in ("", file)))
        for group in ties
    ]
    return [group for group in kept if group.uses]


def _may_be_tied(name: str, tensor: ir.TensorProtocol) -> bool:
    """Whether an initializer is a weight of some size.

    Vectors may be equal by chance: norms start as ones, biases as zeros.
    """
    axes = sum(size != 1 for size in tensor.shape.numpy())
    return tensor.size >= MIN_ELEMENTS and axes > 1 and not name.startswith(OWN_CONSTANTS)


def _group(
    name: str, value: ir.Value, uses: tuple[Use, ...], parameters: Iterable[tuple[str, ...]]
) -> TieGroup:
    tensor = value.const_value
    assert tensor is not None
    members = next((g for g in parameters if is_named(name, g)), ())
    shape = tuple(tensor.shape.numpy())
    return TieGroup(
        name, shape, tensor.dtype.name, tensor.nbytes, uses, tuple(members), _data(value)
    )


def is_named(initializer: str, group: tuple[str, ...]) -> bool:
    """Whether an initializer carries one of the names of a torch parameter."""
    return any(initializer == name or initializer.endswith("." + name) for name in group)


def equal_initializers(model: ir.Model, like: Sequence[str] | None = None) -> list[list[str]]:
    """Groups of initializers with equal elements: as they are, reshaped, or transposed.

    Args:
        model: any graph, and its subgraphs.
        like: only look for copies of these initializers; ``None`` looks at all.
    """
    values = all_initializers(model)
    if like is not None:
        named = [model.graph.initializers[name].const_value for name in like]
        sizes = {(tensor.dtype, tensor.size) for tensor in named if tensor is not None}
        values = [
            value
            for value in values
            if value.const_value is not None
            and (value.const_value.dtype, value.const_value.size) in sizes
        ]
    return [[str(twin.value.name) for twin in group] for group in equal_groups(values)]


def verify_ties(model: ir.Model, ties: Iterable[TieGroup], where: str = "the graph") -> None:
    """Check that every tied weight is still one initializer with as many uses as before.

    Args:
        model: the graph to check.
        ties: the groups it must keep; names must still be there, form and precision may differ.
        where: what made the graph, for the error's text (a pass, a file, ONNX Runtime).

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
            kept = ", ".join(f"{use.op_type} {use.node}" for _, use in uses) or "none"
            raise TieError(
                f"{where}: {group.name} had {len(group.uses)} uses and has {len(uses)} ({kept}); "
                "the others got a copy"
            )
    for copies in equal_initializers(model, like=names):
        tied = next((name for name in copies if name in names), None)
        if tied is not None:
            others = ", ".join(name for name in copies if name != tied)
            raise TieError(f"{where}: {tied} stands in the graph again as {others}")
