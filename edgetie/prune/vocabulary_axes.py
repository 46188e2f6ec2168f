"""Find the tensors of a graph that have an entry for every token, and constants that are tokens."""

from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir

from edgetie.errors import PruneError
from edgetie.graph.matching import (
    attribute_ints,
    constant,
    last_dimension,
    operator,
    producer,
    rank,
)

_TOKENS, LOGITS = "input_ids", "logits"
"""Names of the input and of the output that have to do with all tokens."""
_MOVING = {
    "Cast", "Expand", "Flatten", "GatherElements", "GatherND", "Identity", "Reshape", "Slice",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators whose outputs consist of elements of their first input."""
_ELEMENTWISE = {
    "Abs", "Add", "Cast", "Clip", "Div", "Exp", "Identity", "Max", "Min", "Mul", "Neg", "Pow",
    "Relu", "Sigmoid", "Sub", "Tanh", "Where",
}  # fmt: skip
_SHAPES = {"Shape", "Size"}
_BOUNDS = {"GreaterOrEqual", "Less"}
"""Comparisons of tokens with the number of tokens before some token."""


class VocabularyAxes:
    """The axes of one graph that have an entry for every token of the vocabulary.

    They are followed from the rows that tokens look up and from the logits, through every operator
    that reads or computes them. So names do not matter, and nothing is missed: an operator that is
    not understood is an error.

    Attributes:
        axes: the axis of each value that has one, counted from the last, which is -1.
        token_constants: inputs of nodes that are constants of tokens: node and index.
        bounds: inputs of nodes that are constants which tokens are less than, or not.
        size_constants: inputs of nodes that are shapes whose last size is the vocabulary's.
    """

    def __init__(self, model: ir.Model, file: str) -> None:
        """Follow tokens and logits.

        Args:
            model: its constants must be initializers.
            file: its name, for errors.

        Raises:
            PruneError: naming the node or tensor that is not understood.
        """
        self.axes: dict[ir.Value, int] = {}
        self.token_constants: set[tuple[ir.Node, int]] = set()
        self.bounds: set[tuple[ir.Node, int]] = set()
        self.size_constants: set[tuple[ir.Node, int]] = set()
        self._file = file
        self._tokens: set[ir.Value] = set()
        self._look_ups: list[ir.Node] = []
        self._logits = [value for value in model.graph.outputs if value.name == LOGITS]
        self._size = last_dimension(self._logits[0]) if self._logits else None
        for value in self._logits:
            self._add_axis(value, -1)
        for value in model.graph.inputs:
            if value.name == _TOKENS:
                self._add_tokens(value)
        for node in self._look_ups:
            if node.inputs[1] not in self._tokens:
                name = _name(node.inputs, self.axes)
                raise self._refuse(node, f"looks up {name} by other things than tokens")

    @property
    def initializers(self) -> Iterator[tuple[ir.Value, int]]:
        """The weights among the values, each with its axis."""
        return ((value, axis) for value, axis in self.axes.items() if value.is_initializer())

    def _refuse(self, node: ir.Node, why: str) -> PruneError:
        name = node.name or node.outputs[0].name
        return PruneError(f"{self._file}: node {name} ({operator(node)}) {why}; not supported")

    def _add_tokens(self, value: ir.Value | None) -> None:
        """Follow a value whose elements are tokens to its uses."""
        if value is None or value in self._tokens:
            return
        self._tokens.add(value)
        if value.is_graph_output():
            raise PruneError(f"{self._file}: output {value.name} returns tokens; not supported")
        for node, index in value.uses():
            self._follow_tokens(node, index)

    def _follow_tokens(self, node: ir.Node, index: int) -> None:
        op_type = operator(node)
        if op_type in _SHAPES:
            return
        if op_type == "Gather" and index == 1:
            self._look_up(node)
        elif (op_type in _MOVING or op_type == "Gather") and index == 0:
            for output in node.outputs:
                self._add_tokens(output)
        elif op_type in ("Equal", "Concat") or (op_type == "Where" and index > 0):
            for other in range(op_type == "Where", len(node.inputs)):
                self._require_tokens(node, other)
            if op_type != "Equal":
                self._add_tokens(node.outputs[0])
        elif op_type in _BOUNDS and index == 0 and constant(node.inputs[1]) is not None:
            self.bounds.add((node, 1))
        else:
            raise self._refuse(node, "computes with the numbers of tokens")

    def _require_tokens(self, node: ir.Node, index: int) -> None:
        """Check that an input of a node is tokens: constant, or moved from those of the model."""
        value = node.inputs[index]
        if value is None or value in self._tokens:
            return
        if constant(value) is not None:
            self.token_constants.add((node, index))
            return
        source = producer(value, *_MOVING, "Gather", "Concat", "Where")
        if source is None:
            raise self._refuse(node, f"compares or joins tokens with {value.name}")
        kind = operator(source)
        last = len(source.inputs) if kind in ("Concat", "Where") else 1
        for other in range(kind == "Where", last):
            self._require_tokens(source, other)

    def _look_up(self, node: ir.Node) -> None:
        table = node.inputs[0]
        if table is None or table.shape is None:
            raise self._refuse(node, "looks up tokens in a table of unknown shape")
        axis = node.attributes.get_int("axis", 0)
        self._add_axis(table, axis if axis < 0 else axis - len(table.shape))

    def _add_axis(self, value: ir.Value | None, axis: int) -> None:
        """Follow a vocabulary axis to where it comes from and where it goes."""
        if value is None or not _has_axis(value, axis):
            return
        if value in self.axes:
            if self.axes[value] != axis:
                raise PruneError(
                    f"{self._file}: {value.name} has two axes of the vocabulary; not supported"
                )
            return
        self.axes[value] = axis
        is_input = value.is_graph_input() and not value.is_initializer()
        if is_input or (value.is_graph_output() and value not in self._logits):
            raise PruneError(
                f"{self._file}: {value.name} has an entry for every token and is not the logits; "
                "not supported"
            )
        node = value.producer()
        for each in [*([] if node is None else [node]), *(node for node, _ in value.uses())]:
            self._link(each)

    def _link(self, node: ir.Node) -> None:
        """Follow the vocabulary axis of one of a node's values to its others."""
        op_type, output = operator(node), node.outputs[0]
        values = [*node.inputs, output]
        axis = next(self.axes[v] for v in values if v is not None and v in self.axes)
        if op_type in _SHAPES:
            return
        if op_type in _ELEMENTWISE:
            for value in values:
                self._add_axis(value, axis)
        elif op_type == "Transpose":
            self._link_transpose(node)
        elif op_type in ("Gemm", "MatMul"):
            self._link_product(node)
        elif op_type == "Gather" and self._gather_axis(node) == axis:
            self._look_ups.append(node)
        elif self._keeps_axis(node, axis):
            self._add_axis(node.inputs[0], axis)
            self._add_axis(output, axis)
        else:
            name = _name(values, self.axes)
            why = f"reads or computes {name}, which has an entry for every token"
            raise self._refuse(node, why)

    def _link_transpose(self, node: ir.Node) -> None:
        value, output = node.inputs[0], node.outputs[0]
        assert value is not None
        order = attribute_ints(node, "perm") or list(range(rank(value)))[::-1]
        count = len(order)
        if value in self.axes:
            self._add_axis(output, order.index(self.axes[value] + count) - count)
        elif count:
            self._add_axis(value, order[self.axes[output] + count] - count)

    def _link_product(self, node: ir.Node) -> None:
        """Follow the columns of a product's second factor, its bias and its result."""
        first, second, *biases = node.inputs
        axis = -2 if node.attributes.get_int("transB", 0) else -1
        if first in self.axes or self.axes.get(second, axis) != axis:  # type: ignore[arg-type]
            raise self._refuse(node, "adds up the entries of all tokens")
        self._add_axis(second, axis)
        for value in (*biases, node.outputs[0]):
            self._add_axis(value, -1)

    def _gather_axis(self, node: ir.Node) -> int:
        axis, data = node.attributes.get_int("axis", 0), node.inputs[0]
        return axis if axis < 0 or data is None else axis - rank(data)

    def _keeps_axis(self, node: ir.Node, axis: int) -> bool:
        """Whether a node only changes other axes."""
        if operator(node) == "Reshape":
            return axis == -1 and self._keeps_columns(node)
        return operator(node) in ("Gather", "GatherND", "Slice") and _chooses_before(node, axis)

    def _keeps_columns(self, node: ir.Node) -> bool:
        """Whether a Reshape states the size of the vocabulary as its last one."""
        shape = node.inputs[1]
        join = producer(shape, "Concat")
        reader, index = (node, 1) if join is None else (join, len(join.inputs) - 1)
        sizes = constant(reader.inputs[index])
        if sizes is None or sizes.size == 0 or int(sizes[-1]) != self._size:
            return False
        self.size_constants.add((reader, index))
        return True


def _has_axis(value: ir.Value, axis: int) -> bool:
    """Whether a value may have an axis with an entry for every token, not one for all of them."""
    return value.shape is None or (len(value.shape) >= -axis and value.shape[axis] != 1)


def _chooses_before(node: ir.Node, axis: int) -> bool:
    """Whether a node that chooses elements chooses them along other, mostly earlier, axes only."""
    data, indices = node.inputs[:2]
    if data is None or indices is None or not rank(data):
        return False
    position = rank(data) + axis
    if operator(node) == "Gather":
        own_axis = node.attributes.get_int("axis", 0)
        return 0 <= own_axis < position
    if operator(node) == "GatherND":
        depth = last_dimension(indices)
        return depth is not None and node.attributes.get_int("batch_dims", 0) + depth <= position
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    return axes is not None and position not in [int(each) % rank(data) for each in axes]


def _name(values: Iterable[ir.Value | None], axes: Mapping[ir.Value, int]) -> str:
    return next(str(value.name) for value in values if value is not None and value in axes)
