"""Replace recurrences over a sequence by ONNX Scans, in a trace of single tokens.

A Scan holds the nodes between a past and a present state, and those that compute its large inputs
or reduce its large outputs: these exist for one token at a time. Weights stay outside, each once.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.errors import UnfusableError
from edgetie.export.recurrence.token_unroll import DOMAIN, PRESENT_STATE
from edgetie.graph.editing import initializer, replace

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Neg", "Exp", "Cast", "Unsqueeze", "Squeeze"}
_SUMS = {"MatMul", "ReduceSum"}
_MAX_CHAIN = 8
"""Nodes moved into a Scan to keep one large value there."""


def replace_states_by_scans(model: ir.Model) -> int:
    """Replace the marked nodes of a graph by Scans, in place; returns how many there are.

    Raises:
        UnfusableError: if a recurrence depends on more than the tokens it reads.
    """
    graph = model.graph
    presents = [node for node in graph if (node.domain, node.op_type) == (DOMAIN, PRESENT_STATE)]
    if not presents:
        return 0
    common.InlinePass()(model)
    recurrences: list[_Recurrence] = []
    for present in presents:
        past = _producer(present.inputs[1])
        assert past is not None
        states, nodes = [(past, present)], _nodes_between([past], [present])
        for other in [recurrence for recurrence in recurrences if recurrence.nodes & nodes]:
            recurrences.remove(other)
            states = other.states + states
            nodes = _nodes_between([p for p, _ in states], [n for _, n in states])
        recurrences.append(_Recurrence(states, nodes))
    for recurrence in recurrences:
        _ScanBuilder(graph, recurrence).build()
    graph.sort()
    common.RemoveUnusedNodesPass()(model)
    model.opset_imports.pop(DOMAIN, None)
    return len(recurrences)


@dataclass
class _Recurrence:
    """States, each as its two marked nodes, and the nodes between."""

    states: list[tuple[ir.Node, ir.Node]]
    nodes: set[ir.Node]


def _nodes_between(pasts: list[ir.Node], presents: list[ir.Node]) -> set[ir.Node]:
    """Find the nodes on the paths from past states to present ones."""
    sources = [node for present in presents if (node := _producer(present.inputs[0]))]
    reached = _reachable(pasts, ir.Node.successors)
    needed = _reachable(sources, ir.Node.predecessors)
    return (reached & needed) - set(pasts)


def _reachable(
    start: Iterable[ir.Node], following: Callable[[ir.Node], Sequence[ir.Node]]
) -> set[ir.Node]:
    """Collect ``start`` and all nodes that follow."""
    nodes: set[ir.Node] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node not in nodes:
            nodes.add(node)
            waiting += following(node)
    return nodes


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


class _ScanBuilder:
    """Moves the nodes of one recurrence into a Scan."""

    def __init__(self, graph: ir.Graph, recurrence: _Recurrence) -> None:
        self.graph = graph
        self.states = recurrence.states
        self.marked = {node for pair in recurrence.states for node in pair}
        pasts = [past for past, _ in recurrence.states]
        self.state_shape = pasts[0].outputs[0].shape
        self.after_states = _reachable(pasts, ir.Node.successors)
        self.core = recurrence.nodes | self._reducers(recurrence.nodes)
        self.body_nodes = [node for node in graph if node in self.core]
        ids = pasts[0].inputs[1]
        assert ids is not None
        self.ids = ids
        self.name = f"loop.{recurrence.states[0][1].outputs[0].name}"
        self.in_body: dict[ir.Value, ir.Value] = {}  # what a value of the graph is in the body
        self.scan_inputs: list[ir.Value] = []  # values that the body reads token by token
        self.outer_nodes: list[ir.Node] = []  # around the Scan
        self.recomputed: set[ir.Node] = set()  # computed again in the body, of smaller values

    def build(self) -> None:
        pasts = [past.outputs[0] for past, _ in self.states]
        presents = [value for _, present in self.states if (value := present.inputs[0])]
        for past in pasts:
            self.in_body[past] = self._body_value(past)
        for node in self.body_nodes:
            self.graph.remove(node)
        for node in list(self.body_nodes):
            for index, value in enumerate(node.inputs):
                if value is not None:
                    node.replace_input_with(index, self._body_input(value))
        computed = [*pasts, *(output for node in self.body_nodes for output in node.outputs)]
        sequences = [value for value in computed if self._is_used_outside(value)]
        copies = [self._copy(value) for value in sequences]
        body = ir.Graph(
            [self.in_body[value] for value in [*pasts, *self.scan_inputs]],
            [*presents, *(copy.outputs[0] for copy in copies)],
            nodes=[*self.body_nodes, *copies],
            opset_imports=dict(self.graph.opset_imports),
            name=self.name,
        )
        scan = self._scan(body, len(sequences))
        for (_, present), final in zip(self.states, scan.outputs, strict=False):
            replace(present.outputs[0], final)
            self.graph.remove(present, safe=True)
        for value, sequence in zip(sequences, scan.outputs[len(self.states) :], strict=True):
            tokens = self._node("Reshape", sequence, self._constant([-1, *self._sizes(value)]))
            tokens.shape, tokens.type = value.shape, value.type
            for node, index in list(value.uses()):
                if node.graph is not body:
                    node.replace_input_with(index, tokens)
        self.graph.extend(self.outer_nodes)

    def _scan(self, body: ir.Graph, sequences: int) -> ir.Node:
        count = len(self.scan_inputs)
        initial = [past.inputs[0] for past, _ in self.states]
        scan = ir.node(
            "Scan",
            [*initial, *map(self._sequence, self.scan_inputs)],
            {
                "body": body,
                "num_scan_inputs": count,
                "scan_input_axes": [1] * count,
                "scan_output_axes": [1] * sequences,
            },
            num_outputs=len(self.states) + sequences,
            name=self.name,
        )
        for index, (value, element) in enumerate(zip(scan.outputs, body.outputs, strict=True)):
            value.name = f"{self.name}.{index}"
            value.type = element.type
        for value, state in zip(scan.outputs, initial, strict=False):
            assert state is not None
            value.shape = state.shape
        self.outer_nodes.append(scan)
        return scan

    def _body_input(self, value: ir.Value) -> ir.Value:
        """Return what a node of the body reads: of the body, of a token, or from outside."""
        node = value.producer()
        if node in self.core or not _varies(value):
            return value
        if value not in self.in_body:
            self.recomputed |= self._expanding_nodes(value)
            if node is not None and node in self.recomputed:
                inputs = [None if each is None else self._body_input(each) for each in node.inputs]
                name = f"{self.name}.{value.name}"
                output = ir.Value(name=name, type=value.type, shape=value.shape)
                self.body_nodes.append(
                    ir.node(node.op_type, inputs, node.attributes, outputs=[output])
                )
                self.in_body[value] = output
            else:
                self.in_body[value] = self._body_value(value)
                self.scan_inputs.append(value)
        return self.in_body[value]

    def _expanding_nodes(self, value: ir.Value) -> set[ir.Node]:
        """Find elementwise nodes that compute ``value`` from smaller values; perhaps none."""
        nodes: set[ir.Node] = set()
        inputs = {value}
        while len(nodes) < _MAX_CHAIN:
            widest = max(inputs, key=self._width)
            node = widest.producer()
            if node is None or node.op_type not in _ELEMENTWISE or len(node.outputs) > 1:
                return set()
            varying = {v for v in node.inputs if v is not None and _varies(v)}
            if not varying or not all(self._width(v) for v in varying):
                return set()
            nodes.add(node)
            inputs = inputs - {widest} | varying
            if sum(map(self._width, inputs)) < self._width(value):
                return nodes
        return set()

    def _reducers(self, nodes: set[ir.Node]) -> set[ir.Node]:
        """Find the nodes after the recurrence that reduce values which would leave the body."""
        reducers: set[ir.Node] = set()
        for value in [output for node in nodes for output in node.outputs]:
            users = {node for node, _ in value.uses()} - nodes - self.marked
            chains = [self._reducing_chain(value, node, nodes) for node in users]
            if all(chains):
                reducers.update(*chains)
        return reducers

    def _reducing_chain(self, value: ir.Value, node: ir.Node, nodes: set[ir.Node]) -> set[ir.Node]:
        """Follow ``node`` to the first result that is smaller than ``value``; perhaps none."""
        chain: set[ir.Node] = set()
        while len(chain) < _MAX_CHAIN and node.op_type in _ELEMENTWISE | _SUMS:
            others = [v for v in node.inputs if v is not None and v.producer() not in nodes | chain]
            if any(v.producer() in self.after_states for v in others):
                break
            if not all(self._is_readable(v, node) for v in others):
                break
            chain.add(node)
            result = node.outputs[0]
            if 0 < self._width(result) < self._width(value):
                return chain
            if not self._width(result) or len(result.uses()) != 1 or result.is_graph_output():
                break
            node = next(iter(result.uses()))[0]
        return set()

    def _is_readable(self, value: ir.Value, node: ir.Node) -> bool:
        """Check that ``node`` may read it in a Scan: per token, or a constant but not a weight."""
        if _varies(value):
            return bool(self._width(value))
        return node.op_type in _ELEMENTWISE or len(value.shape or ()) < 2

    def _width(self, value: ir.Value) -> int:
        """Count the elements per token; 0 if the value does not have a first axis of tokens."""
        shape, tokens = value.shape, self.state_shape
        if not shape or tokens is None or str(shape[0]) != str(tokens[0]):
            return 0
        return math.prod(size if isinstance(size, int) else 0 for size in shape[1:])

    def _body_value(self, value: ir.Value) -> ir.Value:
        shape = ir.Shape(["batch_size", *self._sizes(value)])
        return ir.Value(name=f"{self.name}.{value.name}", shape=shape, type=value.type)

    def _sequence(self, value: ir.Value) -> ir.Value:
        """Reshape ``(batch * sequence, *sizes)`` to ``(batch, sequence, *sizes)``."""
        size = self._node("Shape", self.ids)
        shape = self._node("Concat", size, self._constant(self._sizes(value)), axis=0)
        return self._node("Reshape", value, shape)

    def _node(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """Add a node next to the Scan; return its output."""
        name = f"{self.name}.{op_type}.{len(self.outer_nodes)}"
        output = ir.Value(name=name)
        self.outer_nodes.append(ir.node(op_type, inputs, attributes, name=name, outputs=[output]))
        return output

    def _copy(self, value: ir.Value) -> ir.Node:
        """Copy a value of the body, as a body's output must not be another output too."""
        output = self._body_value(value)
        output.name = f"{value.name}.each"
        inputs = [self.in_body.get(value, value)]
        return ir.node("Identity", inputs, name=output.name, outputs=[output])

    def _constant(self, numbers: list[int]) -> ir.Value:
        name = f"loop.sizes.{'x'.join(map(str, numbers))}"
        return initializer(self.graph, name, np.array(numbers, np.int64))

    def _sizes(self, value: ir.Value) -> list[int]:
        """Return the sizes of the axes after that of tokens, which the value must have."""
        if not self._width(value):
            raise UnfusableError(
                f"a state depends on {value.name}, which does not have a value for each token"
            )
        assert value.shape is not None
        return [size for size in value.shape[1:] if isinstance(size, int)]

    def _is_used_outside(self, value: ir.Value) -> bool:
        inside = self.marked.union(self.body_nodes)
        return value.is_graph_output() or any(node not in inside for node, _ in value.uses())


def _varies(value: ir.Value) -> bool:
    """Check whether it depends on an input of the graph."""
    nodes = _reachable([node] if (node := value.producer()) else [], ir.Node.predecessors)
    values = [value, *(each for node in nodes for each in node.inputs if each is not None)]
    return any(v.is_graph_input() for v in values)
