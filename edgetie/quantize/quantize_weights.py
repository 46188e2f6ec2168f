"""Replace float weights, their linear operators and their Gathers by quantized ones."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import onnx_ir as ir

from edgetie.errors import QuantizeError
from edgetie.graph.editing import detach, insert, replace
from edgetie.graph.matching import (
    last_dimension,
    only_user,
    operator,
    other_operand,
    outer_node,
    producer,
    rank,
    weight,
)
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass
from edgetie.quantize.formats.matmul_nbits import MatMulNBitsFormat
from edgetie.quantize.formats.weight_format import DEQUANTIZE_OPSET, WeightFormat
from edgetie.quantize.weights.affine import Array, QuantSpec
from edgetie.quantize.weights.linear_op import (
    LinearOp,
    find_linear_ops,
    is_gather,
    is_weight_matrix,
)
from edgetie.quantize.weights.quantized_weight import QuantizedWeight, quantize_in_background
from edgetie.sources.quantized.tensor import QuantizedTensor

_LARGEST_CLASSIFIER = 32  # output channels; with more, a graph's output is a language model's head
_SCALING = {"Add", "Cast", "Div", "Mul", "Sub"}
_LAYOUT = {"Concat", "Gather", "Reshape", "Slice", "Transpose"}


class QuantizeWeightsPass(GraphPass):
    """Replaces MatMul and Gather over float32 weights, tied weights first.

    Other nodes that read such a weight get it dequantized as a whole.

    Args:
        embedding_format: the format of weights that a Gather reads.
        linear_format: the format of all others.
        hessians: computes the Hessian of a weight's inputs, by the weight's name. These weights are
            quantized with :mod:`~edgetie.quantize.weights.gptq`, all others to nearest.
        excluded: names of weights that stay in floating point.
        higher_precision: names of weights that have the higher precision of ``linear_format``.
        exact: names of weights whose inputs must hardly be rounded.
        linear_in_others: names of weights that linear operators of other models read too.
        stored: weights that are not rounded but stored as they are in a checkpoint, by name.

    Attributes:
        dequantized: quantized weights that nodes read as a whole, and the operators of these.
        float_weights: weights that stay in floating point though not excluded, and their users.
    """

    name = "quantize"

    def __init__(
        self,
        embedding_format: WeightFormat,
        linear_format: WeightFormat,
        hessians: Mapping[str, Callable[[], Array]],
        excluded: Collection[str] = (),
        higher_precision: Collection[str] = (),
        exact: Collection[str] = (),
        linear_in_others: Collection[str] = (),
        stored: Mapping[str, QuantizedTensor] | None = None,
    ) -> None:
        super().__init__()
        self.embedding_format, self.linear_format = embedding_format, linear_format
        self.hessians, self.excluded, self.exact = hessians, excluded, exact
        self.higher_precision, self.linear_in_others = higher_precision, linear_in_others
        self.stored = stored or {}
        self._higher_precision_format = linear_format.higher_precision() or linear_format
        self.dequantized: dict[str, str] = {}
        self.float_weights: dict[str, str] = {}
        self._weights: dict[str, QuantizedWeight] = {}
        self._embeddings: set[str] = set()

    @property
    def initializers(self) -> dict[str, list[str]]:
        """Names of the initializers of each quantized weight, by its name."""
        return {
            name: [str(part.name) for part in weight.parts.values()]
            for name, weight in self._weights.items()
        }

    @property
    def linear_initializers(self) -> dict[str, list[str]]:
        """The same of the weights that only linear operators read."""
        others = self._embeddings | self.dequantized.keys()
        return {n: parts for n, parts in self.initializers.items() if n not in others}

    @property
    def embeddings(self) -> list[str]:
        """Names of the quantized weights that a Gather reads."""
        return [name for name in self._weights if name in self._embeddings]

    @property
    def aliases(self) -> dict[str, str]:
        """Initializers that share the bytes of another, by name."""
        return {
            str(alias.name): str(source.name)
            for weight in self._weights.values()
            for alias, source in weight.aliases.items()
        }

    @property
    def float_bytes(self) -> int:
        """The bytes that the quantized weights had as float32."""
        return sum(4 * each.out_channels * each.in_channels for each in self._weights.values())

    @property
    def block_sizes(self) -> Counter[str]:
        """Number of weights by block size; ``row`` for a whole output channel."""
        return Counter(str(weight.spec.block or "row") for weight in self._weights.values())

    def rewrite(self, model: ir.Model) -> None:
        graph = model.graph
        self._require_opset(graph)
        values = [value for value in graph.initializers.values() if is_weight_matrix(value)]
        values.sort(key=lambda value: len(value.uses()) < 2)
        self._embeddings = {str(v.name) for v in values if any(is_gather(*use) for use in v.uses())}
        for value in values:
            if value.name not in self.excluded:
                self._quantize(graph, value)
        for value in values:
            name = str(value.name)
            if name in self._weights and not value.uses():
                self._weights[name].take_name()
            elif value.uses() and name not in self.excluded:
                users = ", ".join(sorted({operator(node) for node, _ in value.uses()}))
                self.float_weights[name] = f"used by {users}"
        self.skipped += [f"{name}: {reason}" for name, reason in self.float_weights.items()]
        quantize_in_background(list(self._weights.values()))
        graph.sort()  # nodes that several linear operators share come before the first one replaced

    def _require_opset(self, graph: ir.Graph) -> None:
        formats = self.embedding_format, self.linear_format, self._higher_precision_format
        needed, opset = max(each.opset for each in formats), graph.opset_imports.get("", 1)
        if opset < needed:
            raise QuantizeError(
                f"the model's opset is {opset} and this scheme's operators need {needed}; "
                f"export it with opset {needed} or newer, or choose another scheme"
            )

    def _format(self, name: str) -> WeightFormat:
        if name in self.stored:
            return MatMulNBitsFormat(self.stored[name].bits)
        if name in self._embeddings:
            weight_format = self.embedding_format
        else:
            is_higher = name in self.higher_precision
            weight_format = self._higher_precision_format if is_higher else self.linear_format
        if name in self.dequantized and not weight_format.can_dequantize:
            weight_format = weight_format.higher_precision() or weight_format
        return weight_format

    def _quantize(self, graph: ir.Graph, value: ir.Value) -> None:
        """Replace all uses of a weight, if some are linear operators or Gathers."""
        name, weight_format = str(value.name), self._format(str(value.name))
        uses = _find_uses(value, lambda linear_op: self._supports(graph, weight_format, linear_op))
        if value.is_graph_output() or not (uses.linear_ops or uses.gathers):
            return
        if uses.others:
            if name in self.stored and not weight_format.can_dequantize:
                return
            if graph.opset_imports.get("", 1) < DEQUANTIZE_OPSET:
                return
            self.dequantized[name] = ", ".join(sorted({operator(node) for node, _ in uses.others}))
            weight_format = self._format(name)
        stored = self.stored.get(name)
        assert value.const_value is not None
        in_channels = int(value.const_value.shape.numpy()[0 if uses.transposed else 1])
        quantized = self._weights[name] = QuantizedWeight(
            graph,
            value,
            weight_format.spec(in_channels) if stored is None else _spec_of(stored),
            transposed=uses.transposed,
            hessian=self.hessians.get(name),
            in_linear_op=bool(uses.linear_ops) or name in self.linear_in_others,
            uses=max(len(value.uses()), len(uses.linear_ops)),
            stored=stored,
        )
        weight_format.add_values(quantized)
        for node, index in uses.others:
            self._dequantize(node, index, quantized)
        for linear_op in uses.linear_ops:
            self._replace_linear_op(linear_op, quantized)
        for node in uses.gathers:
            self._replace_gather(node, quantized)
        for node, _ in list(value.uses()):
            if operator(node) == "Transpose" and not node.outputs[0].uses():
                detach(node)

    def _supports(self, graph: ir.Graph, weight_format: WeightFormat, linear_op: LinearOp) -> bool:
        is_reachable = linear_op.node.graph is graph or weight_format.supports_subgraphs
        return is_reachable and weight_format.supports_input(linear_op.x)

    def _dequantize(self, node: ir.Node, index: int, quantized: QuantizedWeight) -> None:
        """Let a node read a weight dequantized in the main graph."""
        nodes = Nodes(quantized.graph)
        floats = self._format(quantized.name).dequantize(nodes, quantized)
        if quantized.transposed:
            floats = nodes.transpose(floats)
        insert(outer_node(node, quantized.graph), *nodes.nodes)
        node.replace_input_with(index, floats)
        self.changed += 1

    def _replace_gather(self, node: ir.Node, quantized: QuantizedWeight) -> None:
        """Replace ``Gather(W, indices)`` by its dequantized rows."""
        original, nodes = node.inputs[1], Nodes(quantized.graph)
        assert original is not None
        indices = original
        if original.shape is None:  # their rank is known when the model runs
            indices = nodes("Reshape", original, nodes.integers("gather.flat", [-1]))
            indices.shape = ir.Shape([None])
            indices.type = original.type or ir.TensorType(ir.DataType.INT64)
        output = self._format(quantized.name).gather(nodes, quantized, indices)
        if indices is not original:
            width = quantized.in_channels
            last = nodes.integers(f"gather.width.{width}", [width])
            shape = nodes("Concat", nodes("Shape", original), last, axis=0)
            output = nodes("Reshape", output, shape)
        nodes.nodes[0].name = node.name
        self._replace(node, node.outputs[0], output, nodes, f"{quantized.label}.gather")
        detach(node)

    def _replace_linear_op(self, linear_op: LinearOp, quantized: QuantizedWeight) -> None:
        """Replace a linear operator. A bias stays an Add."""
        node, x, output = linear_op.node, linear_op.x, linear_op.output
        if linear_op.weight_on_left:
            x, output = _remove_flatten(x, output, quantized.in_channels)
        bias: ir.Value | None = None
        add = only_user(output, "Add")
        if add is not None and add.graph is node.graph:
            addend = other_operand(add, output)
            tensor = weight(addend)
            if tensor is not None and tuple(tensor.shape) == (quantized.out_channels,):
                bias, output = addend, add.outputs[0]
        # errors in the inputs of a language model's head are errors of the logits
        is_head = _is_logits(output) and quantized.out_channels > _LARGEST_CLASSIFIER
        nodes = Nodes(quantized.graph)
        if node.graph is not quantized.graph:  # formats share what they compute from an activation
            x = nodes("Identity", x)
        result = self._format(quantized.name).matmul(
            nodes, quantized, x, is_head or quantized.name in self.exact
        )
        if bias is not None:  # ONNX Runtime's CPU provider fuses it; other kernels cannot
            result = nodes("Add", result, bias)
        readers = [each for each in nodes.nodes if quantized.values in each.inputs]
        (readers or nodes.nodes[-1:])[0].name = node.name
        last = output.producer()
        assert last is not None
        self._replace(last, output, result, nodes, f"{quantized.label}.matmul")
        detach(node)

    def _replace(
        self, before: ir.Node, old: ir.Value, new: ir.Value, nodes: Nodes, name: str
    ) -> None:
        """Insert nodes before another one and replace a value."""
        if before.graph is not nodes.main_graph:
            nodes.make_names_unique(f"{name}.{self.changed}")
        insert(before, *nodes.nodes)
        replace(old, new)
        self.changed += 1


def _spec_of(stored: QuantizedTensor) -> QuantSpec:
    return QuantSpec(stored.bits, stored.block, asymmetric=True)


class _Uses(NamedTuple):
    """How nodes use a weight.

    Attributes:
        linear_ops: linear operators that read it along one of its axes.
        transposed: whether it is stored ``(in, out)`` for these.
        gathers: nodes that look up its rows.
        others: other nodes, and the index of their input.
    """

    linear_ops: list[LinearOp]
    transposed: bool
    gathers: list[ir.Node]
    others: list[tuple[ir.Node, int]]


def _find_uses(value: ir.Value, is_supported: Callable[[LinearOp], bool]) -> _Uses:
    """Sort the uses of a weight. It is stored once, with blocks along one of its axes: rows if they
    are looked up, otherwise what most linear operators read.
    """
    gathers = [node for node, index in value.uses() if is_gather(node, index)]
    linear_ops = [each for each in find_linear_ops(value) if is_supported(each)]
    by_columns = [each for each in linear_ops if each.transposed]
    transposed = not gathers and 2 * len(by_columns) >= max(1, len(linear_ops))
    linear_ops = [each for each in linear_ops if each.transposed == transposed]
    replaced = {*gathers, *(each.node for each in linear_ops)}

    def is_replaced(node: ir.Node) -> bool:
        output = node.outputs[0]
        is_view = operator(node) == "Transpose" and not output.is_graph_output()
        return node in replaced or (is_view and all(user in replaced for user, _ in output.uses()))

    others = [(node, index) for node, index in value.uses() if not is_replaced(node)]
    return _Uses(linear_ops, transposed, gathers, others)


def _is_logits(value: ir.Value) -> bool:
    """Whether a value is an output, or becomes one by constants and a change of layout."""
    while not value.is_graph_output():
        user = only_user(value)
        if user is None:
            return False
        others = [each for each in user.inputs if each is not value]
        is_scaled = operator(user) in _SCALING and all(weight(each) is not None for each in others)
        if not is_scaled and operator(user) not in _LAYOUT:
            return False
        value = user.outputs[0]
    return True


def _remove_flatten(x: ir.Value, output: ir.Value, in_channels: int) -> tuple[ir.Value, ir.Value]:
    """Skip a head's ``Reshape(x, (-1, K))`` and the Reshape of its output, if it has both."""
    flatten, restore = producer(x, "Reshape"), only_user(output, "Reshape")
    if flatten is None or restore is None or flatten.inputs[0] is None:
        return x, output
    inner, outer = flatten.inputs[0], restore.outputs[0]
    if rank(inner) == rank(outer) == 3 and last_dimension(inner) == in_channels:
        return inner, outer
    return x, output
