"""Matrices of a float graph, found and replaced: shared ones first, and once.

A :class:`WeightFormat` says how a matrix is stored and computed with; which of two
it takes depends on whether rows are looked up in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx_ir as ir

from edgetie.errors import QuantizeError
from edgetie.graph.editing import initializer, insert, replace
from edgetie.graph.matching import last_dimension, only_user, producer, weight
from edgetie.graph.operators import operator
from edgetie.passes.base import GraphPass
from edgetie.quantize.formats.weight_format import (
    NodeBuilder,
    QuantizedWeight,
    WeightFormat,
    quantize_in_background,
)
from edgetie.quantize.weights.affine import Array
from edgetie.quantize.weights.linear_op import (
    LinearOp,
    find_linear_ops,
    is_gather,
    is_weight_matrix,
)

_FEW = 32  # output channels of what is no head: a classifier's


class QuantizeWeightsPass(GraphPass):
    """Replaces MatMul and Gather over fp32 weights.

    Args:
        embedding_format: the format of weights that a Gather reads.
        linear_format: the format of all others.
        hessians: computes the Hessian of a weight's inputs, by the weight's name. These weights are
            quantized with :mod:`~edgetie.quantize.weights.gptq`, all others to nearest.
        excluded: names of weights that stay in floating point.
        higher_precision: names of weights that have the higher precision of ``linear_format``.
        exact: names of weights whose inputs must hardly be rounded.
        linear_in_others: names of weights that linear operators of other models read too.

    Attributes:
        aliases: initializers that share the bytes of another, by name.
        block_sizes: number of weights by block size.
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
    ) -> None:
        super().__init__()
        self.table, self.layer, self.hessians = embedding_format, linear_format, hessians
        self.excluded, self.higher_precision, self.exact = excluded, higher_precision, exact
        self.linear_in_others = linear_in_others
        self._higher_precision = linear_format.higher_precision() or linear_format
        self.aliases: dict[str, str] = {}
        self.block_sizes: dict[str, int] = {}
        self._matrices: dict[str, QuantizedWeight] = {}

    @property
    def linear_initializers(self) -> dict[str, list[str]]:
        """Names of the initializers of each quantized weight that no Gather reads, by its name."""
        return {
            m.name: [str(part.name) for part in m.parts]
            for m in self._matrices.values()
            if not self._is_table[m.name]
        }

    @property
    def embeddings(self) -> list[str]:
        """Names of the quantized weights that a Gather reads."""
        return [m.name for m in self._matrices.values() if self._is_table[m.name]]

    def rewrite(self, model: ir.Model) -> None:
        graph = model.graph
        needed, opset = max(form.opset for form in self._forms), graph.opset_imports.get("", 1)
        if opset < needed:
            raise QuantizeError(
                f"the model's opset is {opset} and this scheme's operators need {needed}; "
                f"export it with opset {needed} or newer, or choose another scheme"
            )
        values = [v for v in graph.initializers.values() if is_weight_matrix(v)]
        values.sort(key=lambda value: len(value.uses()) < 2)  # the tied ones first
        self._is_table = {str(v.name): any(is_gather(*use) for use in v.uses()) for v in values}
        for value in values:
            if value.name not in self.excluded and _is_read_one_way(value):
                self._replace(graph, value)
        self.aliases = {name: to for form in self._forms for name, to in form.aliases.items()}
        sizes = Counter(str(m.spec.block or "row") for m in self._matrices.values())
        self.block_sizes = dict(sizes)
        self._take_over_names(graph, values)
        quantize_in_background(list(self._matrices.values()))
        graph.sort()  # what several products read stands in front of the first one replaced
        for value in values:
            if value.uses() and value.name not in self.excluded:
                users = ", ".join(sorted({operator(node) for node, _ in value.uses()}))
                self.skipped.append(f"{value.name}: used by {users}")

    def _take_over_names(self, graph: ir.Graph, values: list[ir.Value]) -> None:
        """Codes carry the name of the weight they replace: a tie group stays the same by name."""
        replaced = {str(value.name) for value in values if not value.uses()}
        for matrix in self._matrices.values():
            if matrix.name not in replaced or matrix.name not in graph.initializers:
                continue
            graph.initializers.pop(matrix.name)
            old = str(graph.initializers.pop(str(matrix.codes.name)).name)
            matrix.codes.name = matrix.name
            graph.register_initializer(matrix.codes)
            # what belongs to it comes behind it, as the writer takes them
            for name in [n for n in graph.initializers if n.startswith(f"{matrix.label}.")]:
                graph.register_initializer(graph.initializers.pop(name))
            for name in [name for name, target in self.aliases.items() if target == old]:
                self.aliases[name] = matrix.name

    def _replace(self, graph: ir.Graph, value: ir.Value) -> None:
        """Take the place of every use that is known of a matrix."""
        form = self._form(str(value.name))
        products = find_linear_ops(value)
        if not all(form.takes(product.x) for product in products):
            return
        if not form.branches and any(product.node.graph is not graph for product in products):
            return
        for product in products:
            matrix = self._matrix(graph, value, transposed=product.transposed)
            self._product(product, matrix)
        for node, index in list(value.uses()):
            if is_gather(node, index):
                matrix = self._matrix(graph, value, transposed=False, multiplied=bool(products))
                self._lookup(graph, node, matrix)
        for node, _ in list(value.uses()):
            if operator(node) == "Transpose" and not node.outputs[0].uses():
                _forget(node)

    @property
    def _forms(self) -> tuple[WeightFormat, ...]:
        return self.table, self.layer, self._higher_precision

    def _form(self, name: str) -> WeightFormat:
        if self._is_table[name]:
            return self.table
        return self._higher_precision if name in self.higher_precision else self.layer

    def _matrix(
        self, graph: ir.Graph, value: ir.Value, *, transposed: bool, multiplied: bool = True
    ) -> QuantizedWeight:
        """A weight to be rounded, made once; ``transposed`` if it is stored ``(in, out)``."""
        label = f"{value.name}{'.T' if transposed else ''}"
        if label in self._matrices:
            return self._matrices[label]
        tensor, name = value.const_value, str(value.name)
        assert tensor is not None
        shape = list(tensor.shape.numpy())
        rows, columns = shape[::-1] if transposed else shape

        form = self._form(name)
        matrix = QuantizedWeight(
            graph,
            name,
            label,
            (rows, columns),
            form.spec(columns),
            tensor.numpy,
            transposed,
            self.hessians.get(name),
            multiplied=multiplied or name in self.linear_in_others,
            uses=max(len(value.uses()), len(find_linear_ops(value))),
        )
        form.store(matrix)
        self._matrices[label] = matrix
        return matrix

    def _lookup(self, graph: ir.Graph, node: ir.Node, matrix: QuantizedWeight) -> None:
        """``Gather(W, ids)``: the rows, dequantized."""
        ids, result = node.inputs[1], node.outputs[0]
        assert ids is not None
        nodes, flat = NodeBuilder(matrix.graph), ids
        if ids.shape is None:  # of as many axes as it has when the model runs
            line = initializer(matrix.graph, "table.line", np.array([-1], np.int64))
            flat = nodes("Reshape", ids, line)
            flat.shape, flat.type = ir.Shape([None]), ids.type or ir.TensorType(ir.DataType.INT64)
        assert flat.shape is not None
        nodes += self._form(matrix.name).lookup(matrix, flat, len(flat.shape))
        if flat is not ids:
            width = np.array([matrix.columns], np.int64)
            last = initializer(matrix.graph, f"table.width.{matrix.columns}", width)
            shape = nodes("Concat", nodes("Shape", ids), last, axis=0)
            nodes("Reshape", nodes[-3].outputs[0], shape)
        if node.graph is not matrix.graph:
            nodes.make_names_unique(f"{matrix.label}.lookup.{self.changed}")
        nodes[0].name = node.name
        insert(node, *nodes)
        replace(result, nodes[-1].outputs[0])
        _forget(node)
        self.changed += 1

    def _product(self, product: LinearOp, matrix: QuantizedWeight) -> None:
        """``x Wᵀ``, with a bias behind it taken in."""
        node, x, result = product.node, product.x, product.output
        if product.weight_on_left:
            x, result = _unflattened(x, result, matrix)
        bias: ir.Value | None = None
        add = only_user(result, "Add")
        if add is not None and add.graph is node.graph:
            added = add.inputs[1] if add.inputs[0] is result else add.inputs[0]
            tensor = weight(added)
            if tensor is not None and tuple(tensor.shape) == (matrix.rows,):
                bias = added
                result = add.outputs[0]
        # what is rounded away in front of the head goes into the logits as it is
        head = result.is_graph_output() and matrix.rows > _FEW
        exact = head or matrix.name in self.exact
        nodes = NodeBuilder(matrix.graph)
        if node.graph is not matrix.graph:  # others do not see what a form keeps of x
            x = nodes.again(x)
        nodes += self._form(matrix.name).product(matrix, x, bias, exact=exact)
        if node.graph is not matrix.graph:
            nodes.make_names_unique(f"{matrix.label}.product.{self.changed}")
        next((n for n in nodes if matrix.codes in n.inputs), nodes[-1]).name = node.name
        made = result.producer()
        assert made is not None
        insert(made, *nodes)
        replace(result, nodes[-1].outputs[0])
        _forget(node)
        self.changed += 1


def _is_read_one_way(value: ir.Value) -> bool:
    """Whether all that reads a matrix can read the same codes. Blocks of its rows serve a product
    with it as it is or transposed, not both; what reads it otherwise needs its floats. Rounding
    would part such a matrix, so it stays in floating point.
    """
    products = {id(product.node) for product in find_linear_ops(value)}

    def is_known(use: tuple[ir.Node, int]) -> bool:
        node = use[0]
        if operator(node) == "Transpose":
            turned = node.outputs[0]
            known = all(id(user) in products for user, _ in turned.uses())
            return known and not turned.is_graph_output()
        return id(node) in products or is_gather(*use)

    ways = {operator(node) == "MatMul" and index == 1 for node, index in value.uses()}
    return len(ways) == 1 and not value.is_graph_output() and all(map(is_known, value.uses()))


def _unflattened(
    x: ir.Value, result: ir.Value, matrix: QuantizedWeight
) -> tuple[ir.Value, ir.Value]:
    """Undo the head's ``Reshape(…, (-1, K))`` and the Reshape back, where both are there."""
    flat, restored = producer(x, "Reshape"), only_user(result, "Reshape")
    if flat is None or restored is None or flat.inputs[0] is None:
        return x, result
    inner, outer = flat.inputs[0], restored.outputs[0]
    ranks = [len(v.shape) if v.shape is not None else 0 for v in (inner, outer)]
    if ranks == [3, 3] and last_dimension(inner) == matrix.columns:
        return inner, outer
    return x, result


def _forget(node: ir.Node) -> None:
    """Detach a replaced node from its inputs, so an unused weight shows as unused."""
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
