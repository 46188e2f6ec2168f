"""Loops over a sequence: what lies between a past and a present state becomes an ONNX Scan.

The graph comes from a trace of single tokens (:mod:`token_unroll`). Only the nodes that a
state runs through on its way to the next one are looped, and what makes or reads large values
beside it, so that they exist for one token at a time; everything else runs on all tokens at once.
Weights stay outside, each once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.errors import UnfusableError
from edgetie.export.recurrence.token_unroll import DOMAIN, PRESENT_STATE
from edgetie.graph.editing import initializer, replace

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Neg", "Exp", "Cast", "Unsqueeze", "Squeeze"}
_SUMS = {"MatMul", "ReduceSum"}
_MOST_NODES = 8
"""Nodes taken into a loop to keep one large value there."""


def replace_loops_by_scans(model: ir.Model) -> int:
    """Replace the marked nodes of a graph by loops, in place.

    Returns:
        How many loops there are.

    Raises:
        UnfusableError: if something in a loop depends on more than the rows it reads.
    """
    graph = model.graph
    presents = [node for node in graph if (node.domain, node.op_type) == (DOMAIN, PRESENT_STATE)]
    if not presents:
        return 0
    common.InlinePass()(model)
    loops: list[_Loop] = []
    for present in presents:
        past = _made(present.inputs[1])
        assert past is not None
        states, nodes = [(past, present)], _between([past], [present])
        for other in [loop for loop in loops if loop.nodes & nodes]:
            loops.remove(other)
            states = other.states + states
            nodes = _between([p for p, _ in states], [n for _, n in states])
        loops.append(_Loop(states, nodes))
    for loop in loops:
        _Builder(graph, loop).build()
    graph.sort()
    common.RemoveUnusedNodesPass()(model)
    model.opset_imports.pop(DOMAIN, None)
    return len(loops)


@dataclass
class _Loop:
    """States, as their two marked nodes, and the nodes between."""

    states: list[tuple[ir.Node, ir.Node]]
    nodes: set[ir.Node]


def _between(pasts: list[ir.Node], presents: list[ir.Node]) -> set[ir.Node]:
    """The nodes on a way from a past state to a present one."""
    reached = _closure(pasts, _users)
    needed = _closure([made for p in presents if (made := _made(p.inputs[0]))], _sources)
    return (reached & needed) - set(pasts)


def _closure(
    start: Iterable[ir.Node], following: Callable[[ir.Node], list[ir.Node]]
) -> set[ir.Node]:
    """``start`` and everything that follows."""
    found: set[ir.Node] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += following(node)
    return found


def _made(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _users(node: ir.Node) -> list[ir.Node]:
    return [user for out in node.outputs for user, _ in out.uses()]


def _sources(node: ir.Node) -> list[ir.Node]:
    return [made for value in node.inputs if (made := _made(value)) is not None]


class _Builder:
    """Moves the nodes of one loop into a Scan."""

    def __init__(self, graph: ir.Graph, loop: _Loop) -> None:
        self.graph = graph
        self.states = loop.states
        pasts = [past for past, _ in loop.states]
        self.rows = pasts[0].outputs[0].shape
        self.behind = _closure(pasts, _users)
        self.core = loop.nodes | self._readers(loop.nodes)
        self.nodes = [node for node in graph if node in self.core]
        ids = loop.states[0][0].inputs[1]
        assert ids is not None
        self.ids = ids
        self.name = f"loop.{loop.states[0][1].outputs[0].name}"
        self.inside: dict[ir.Value, ir.Value] = {}  # what a value of the graph is in the body
        self.read: list[ir.Value] = []  # values that the loop reads row by row
        self.new: list[ir.Node] = []  # around the Scan
        self.copied: set[ir.Node] = set()  # computed again in the body, of smaller values

    def build(self) -> None:
        pasts = [past.outputs[0] for past, _ in self.states]
        presents = [value for _, present in self.states if (value := present.inputs[0])]
        for past in pasts:
            self.inside[past] = self._body_value(past)
        for node in self.nodes:
            self.graph.remove(node)
        for node in list(self.nodes):
            for index, value in enumerate(node.inputs):
                if value is not None:
                    node.replace_input_with(index, self._in_body(value))
        made = [*pasts, *(out for node in self.nodes for out in node.outputs)]
        made = [value for value in made if self._is_used_outside(value)]
        copies = [self._copy(value) for value in made]
        body = ir.Graph(
            [self.inside[value] for value in [*pasts, *self.read]],
            [*presents, *(copy.outputs[0] for copy in copies)],
            nodes=[*self.nodes, *copies],
            opset_imports=dict(self.graph.opset_imports),
            name=self.name,
        )
        scan = self._scan(body, len(made))
        for (_, present), final in zip(self.states, scan.outputs, strict=False):
            replace(present.outputs[0], final)
            self.graph.remove(present, safe=True)
        for value, sequence in zip(made, scan.outputs[len(self.states) :], strict=True):
            rows = self._node("Reshape", sequence, self._constant([-1, *self._sizes(value)]))
            rows.shape, rows.type = value.shape, value.type
            for node, index in list(value.uses()):
                if node.graph is not body:
                    node.replace_input_with(index, rows)
        self.graph.extend(self.new)

    def _scan(self, body: ir.Graph, outputs: int) -> ir.Node:
        count = len(self.read)
        first = [past.inputs[0] for past, _ in self.states]
        scan = ir.node(
            "Scan",
            [*first, *map(self._sequence, self.read)],
            {
                "body": body,
                "num_scan_inputs": count,
                "scan_input_axes": [1] * count,
                "scan_output_axes": [1] * outputs,
            },
            num_outputs=len(self.states) + outputs,
            name=self.name,
        )
        for index, (value, element) in enumerate(zip(scan.outputs, body.outputs, strict=True)):
            value.name = f"{self.name}.{index}"
            value.type = element.type
        for value, given in zip(scan.outputs, first, strict=False):
            assert given is not None
            value.shape = given.shape
        self.new.append(scan)
        return scan

    def _in_body(self, value: ir.Value) -> ir.Value:
        """The value as a node of the body reads it: of the loop, of the row, or from outside."""
        node = value.producer()
        if node in self.core or not _varies(value):
            return value
        if value not in self.inside:
            self.copied |= self._makers(value)
            if node in self.copied:
                self.inside[value] = self._made_inside(value)
            else:
                self.inside[value] = self._body_value(value)
                self.read.append(value)
        return self.inside[value]

    def _made_inside(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        assert node is not None
        inputs = [None if given is None else self._in_body(given) for given in node.inputs]
        copy = ir.node(node.op_type, inputs, node.attributes)
        made = copy.outputs[0]
        made.name, made.type, made.shape = f"{self.name}.{value.name}", value.type, value.shape
        self.nodes.append(copy)
        return made

    def _makers(self, value: ir.Value) -> set[ir.Node]:
        """The nodes that make ``value`` of smaller values, element by element; none if it is not
        made so.
        """
        found: set[ir.Node] = set()
        reading = {value}
        while len(found) < _MOST_NODES:
            widest = max(reading, key=self._width)
            node = widest.producer()
            if node is None or node.op_type not in _ELEMENTWISE or len(node.outputs) > 1:
                return set()
            given = {v for v in node.inputs if v is not None and _varies(v)}
            if not given or not all(self._width(v) for v in given):
                return set()
            found.add(node)
            reading = reading - {widest} | given
            if sum(map(self._width, reading)) < self._width(value):
                return found
        return set()

    def _readers(self, nodes: set[ir.Node]) -> set[ir.Node]:
        """The nodes behind the loop that make smaller values of those that would leave it."""
        found: set[ir.Node] = set()
        for value in [out for node in nodes for out in node.outputs]:
            users = {node for node, _ in value.uses()} - nodes - {n for s in self.states for n in s}
            chains = [self._reader(value, node, nodes) for node in users]
            if all(chains):
                found.update(*chains)
        return found

    def _reader(self, value: ir.Value, node: ir.Node, nodes: set[ir.Node]) -> set[ir.Node]:
        """``node``, and those behind it up to the first with a result smaller than ``value``."""
        chain: set[ir.Node] = set()
        while len(chain) < _MOST_NODES and node.op_type in _ELEMENTWISE | _SUMS:
            others = [v for v in node.inputs if v is not None and v.producer() not in nodes | chain]
            if any(v.producer() in self.behind for v in others):
                break
            if not all(self._may_be_read(v, node) for v in others):
                break
            chain.add(node)
            result = node.outputs[0]
            if 0 < self._width(result) < self._width(value):
                return chain
            if not self._width(result) or len(result.uses()) != 1 or result.is_graph_output():
                break
            node = next(iter(result.uses()))[0]
        return set()

    def _may_be_read(self, value: ir.Value, node: ir.Node) -> bool:
        """Whether ``node`` may read it in a loop: a row, or a constant, but no product's matrix."""
        if _varies(value):
            return bool(self._width(value))
        return node.op_type in _ELEMENTWISE or len(value.shape or ()) < 2

    def _width(self, value: ir.Value) -> int:
        """Elements of each row; 0 of a value that has no rows."""
        shape, rows = value.shape, self.rows
        if not shape or rows is None or str(shape[0]) != str(rows[0]):
            return 0
        return math.prod(size if isinstance(size, int) else 0 for size in shape[1:])

    def _body_value(self, value: ir.Value) -> ir.Value:
        shape = ir.Shape(["batch_size", *self._sizes(value)])
        return ir.Value(name=f"{self.name}.{value.name}", shape=shape, type=value.type)

    def _sequence(self, value: ir.Value) -> ir.Value:
        """``(batch * sequence, *sizes)`` as ``(batch, sequence, *sizes)``."""
        size = self._node("Shape", self.ids)
        shape = self._node("Concat", size, self._constant(self._sizes(value)), axis=0)
        return self._node("Reshape", value, shape)

    def _node(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """A node beside the Scan; its output."""
        node = ir.node(op_type, inputs, attributes, name=f"{self.name}.{op_type}.{len(self.new)}")
        node.outputs[0].name = node.name
        self.new.append(node)
        return node.outputs[0]

    def _copy(self, value: ir.Value) -> ir.Node:
        """A value of the body as an output of it alone."""
        copy = ir.node("Identity", [self.inside.get(value, value)], name=f"{value.name}.each")
        copy.outputs[0].name, copy.outputs[0].type = copy.name, value.type
        copy.outputs[0].shape = ir.Shape(["batch_size", *self._sizes(value)])
        return copy

    def _constant(self, numbers: list[int]) -> ir.Value:
        name = f"loop.sizes.{'x'.join(map(str, numbers))}"
        return initializer(self.graph, name, np.array(numbers, np.int64))

    def _sizes(self, value: ir.Value) -> list[int]:
        """The sizes behind the rows.

        Raises:
            UnfusableError: if it does not have a row for each token.
        """
        if not self._width(value):
            raise UnfusableError(
                f"a state depends on {value.name}, which has no row for each token"
            )
        assert value.shape is not None
        return [size for size in value.shape[1:] if isinstance(size, int)]

    def _is_used_outside(self, value: ir.Value) -> bool:
        marked = {node for pair in self.states for node in pair}
        inside = marked.union(self.nodes)
        return value.is_graph_output() or any(node not in inside for node, _ in value.uses())


def _varies(value: ir.Value) -> bool:
    """Whether it depends on an input of the graph."""
    nodes = _closure([made] if (made := value.producer()) else [], _sources)
    values = [value, *(given for node in nodes for given in node.inputs if given is not None)]
    return any(v.is_graph_input() for v in values)
