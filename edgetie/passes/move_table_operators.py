"""Move operators between a weight and its uses to the other side of these uses."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.graph.constant_values import ConstantValues, constant_values, static_shape
from edgetie.graph.editing import replace_initializer, transformed
from edgetie.graph.matching import operator, producer, rank, same_shape, weight
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import WeightPass
from edgetie.passes.gemm_to_matmul import gemm_to_matmul
from edgetie.passes.table_operators.look_ups import LookUps
from edgetie.passes.table_operators.products import Products
from edgetie.passes.table_operators.reader import CannotMoveError, swaps_axes

_BROADCAST = ("Add", "Div", "Mul", "Sub")
_SINGLE = ("Cast", "Identity", "Neg", "Squeeze", "Transpose", "Unsqueeze")


class MoveTableOperators(WeightPass):
    """Lets Gather and MatMul read the weight itself, if they read what is computed from it.

    Operators that act on rows of the table move to the rows that are looked up, or to the logits.
    Operators that act on its columns move to the rows, or to the hidden states. Afterwards a table
    that is stored transposed but looked up is stored by rows.
    """

    def rewrite(self, model: ir.Model) -> None:
        _simplify_products(model)
        weights = _computed_tables(model)
        for node in list(model.graph.all_nodes()):
            if operator(node) in ("Gather", "MatMul") and node.outputs[0] not in weights:
                self._move(model.graph, node, weights)
        common.RemoveUnusedNodesPass()(model)  # moved operators would still use their weights
        for value in list(model.graph.initializers.values()):
            if value.name not in self.fixed:
                self.changed += _store_by_rows(model.graph, value)

    def _move(self, graph: ir.Graph, node: ir.Node, weights: ConstantValues) -> None:
        table = _table_to_pass(node, weights)
        if table is None:
            return
        nodes = Nodes(graph)
        operators = TableOperators(nodes, weights)
        try:
            if operator(node) == "Gather":
                result = _look_up(operators, node, table)
            elif table is node.inputs[1]:
                result = _multiply(operators, node.inputs[0], table)
            else:
                result = _multiply_left(operators, table, node.inputs[1])
        except CannotMoveError as error:
            nodes.discard()
            names = ", ".join(sorted(str(each.name) for each in weights[table]))
            self.skipped.append(f"{names}: {error}")
            return
        nodes.insert_instead_of(node, result)
        self.changed += 1


class TableOperators(LookUps, Products):
    """Look-ups in computed tables and products with them, computed from the weights themselves."""


def _simplify_products(model: ir.Model) -> None:
    """Let MatMuls multiply with computed tables, instead of Gemms or with an Expand between."""
    weights = _computed_tables(model)
    for node in list(model.graph.all_nodes()):
        if operator(node) in ("Gemm", "FusedMatMul"):
            operands = [value for value in node.inputs if value is not None and value.producer()]
            if weights.get(node.outputs[0]) or any(_reads_table(v, weights) for v in operands):
                gemm_to_matmul(model.graph, node)
        elif operator(node) == "MatMul":
            _skip_expand(node)


def _computed_tables(model: ir.Model) -> ConstantValues:
    """Map constants, and tables that activations scale or shift by rows, by columns or as a whole,
    to the weights that they are computed from.
    """
    weights = dict(constant_values(model))
    for node in model.graph:
        if node.outputs[0] in weights or operator(node) not in (*_BROADCAST, *_SINGLE):
            continue
        operands = [value for value in node.inputs if value is not None]
        tables = [value for value in operands if _reads_table(value, weights)]
        if tables and all(v in tables or v in weights or _is_vector(v) for v in operands):
            leaves = (weights[table] for table in tables)
            weights[node.outputs[0]] = frozenset[ir.Value]().union(*leaves)
    return weights


def _is_vector(value: ir.Value) -> bool:
    """Whether at most one of the last two axes is longer than 1, and no other is."""
    shape = static_shape(value)
    return shape is not None and sum(n > 1 for n in shape) < 2 and all(n == 1 for n in shape[:-2])


def _reads_table(value: ir.Value, weights: ConstantValues) -> bool:
    """Whether a value is a float32 matrix, or computed from one."""
    return any(_is_table(each) for each in weights.get(value, ()))


def _is_table(value: ir.Value) -> bool:
    shape = static_shape(value)
    return value.dtype == ir.DataType.FLOAT and shape is not None and sum(n > 1 for n in shape) == 2


def _table_to_pass(node: ir.Node, weights: ConstantValues) -> ir.Value | None:
    """Return the computed table that a Gather or a MatMul reads instead of a weight."""
    for index, value in enumerate(node.inputs[:2]):
        if value is None or not _reads_table(value, weights):
            continue
        reads_two = operator(node) == "MatMul" and node.inputs[1 - index] in weights
        if not reads_two and not _reads_weight(node, index, value):
            return value
    return None


def _reads_weight(node: ir.Node, index: int, value: ir.Value) -> bool:
    """Whether a Gather looks up rows of a weight, or a MatMul multiplies with one, which may be
    transposed.
    """
    is_product = operator(node) == "MatMul"
    if weight(value) is not None:
        return is_product or node.attributes.get_int("axis", 0) == 0
    transpose = producer(value, "Transpose")
    return (
        is_product
        and index == 1
        and transpose is not None
        and swaps_axes(transpose)
        and weight(transpose.inputs[0]) is not None
    )


def _skip_expand(node: ir.Node) -> None:
    """Let a MatMul read a matrix that an Expand repeats for each batch item itself."""
    x, expand = node.inputs[0], producer(node.inputs[1], "Expand")
    source = expand.inputs[0] if expand is not None else None
    if x is None or expand is None or source is None:
        return
    output, shape = expand.outputs[0], static_shape(source)
    if shape is None or len(shape) < 2 or output.shape is None:
        return
    is_matrix = all(size == 1 for size in shape[:-2])
    if is_matrix and same_shape(x, output, end=-2) and tuple(output.shape[-2:]) == shape[-2:]:
        node.replace_input_with(1, source)


def _look_up(operators: TableOperators, node: ir.Node, value: ir.Value) -> ir.Value:
    """Look up rows or columns of a computed table."""
    ids, axis = node.inputs[1], node.attributes.get_int("axis", 0) % max(1, rank(value))
    if ids is None or rank(value) != 2:
        raise CannotMoveError(f"Gather reads {value.name} of {rank(value)} axes")
    rows = operators.look_up(value, ids, axis)
    if axis == 0:
        return rows
    if ids.shape is None:
        raise CannotMoveError("Gather of columns by ids of unknown shape")
    return operators.nodes("Transpose", rows, perm=[rank(ids), *range(rank(ids))])


def _multiply(operators: TableOperators, x: ir.Value | None, value: ir.Value) -> ir.Value:
    """Multiply an activation with a computed table."""
    if x is None or rank(value) > max(2, rank(x)):
        raise CannotMoveError(f"MatMul reads {value.name} of {rank(value)} axes")
    x.type = x.type or value.type  # operands of a MatMul have one type
    return operators.multiply(x, value, 0)


def _multiply_left(operators: TableOperators, value: ir.Value, x: ir.Value | None) -> ir.Value:
    """Multiply a computed table with an activation: ``W x = (xᵀ Wᵀ)ᵀ``."""
    if x is None or rank(x) < max(2, rank(value)):
        raise CannotMoveError(f"MatMul reads {value.name} on the left")
    x.type = x.type or value.type
    nodes, axes = operators.nodes, rank(x)
    return nodes.transpose(operators.multiply(nodes.transpose(x, axes), value, 1), axes)


def _store_by_rows(graph: ir.Graph, value: ir.Value) -> bool:
    """Transpose a weight if Gathers read its transpose, and none reads the weight itself."""
    uses = list(value.uses())
    transposes = [n for n, _ in uses if operator(n) == "Transpose" and swaps_axes(n)]
    readers = [user for node in transposes for user, i in node.outputs[0].uses() if i == 0]
    is_looked_up = any(operator(user) == "Gather" for user in readers)
    if not is_looked_up or any(operator(node) == "Gather" for node, _ in uses):
        return False
    tensor = value.const_value
    if tensor is None or not _is_table(value) or value.is_graph_output():
        return False
    by_rows = transformed(tensor, np.transpose, tensor.shape.numpy()[::-1])
    table = replace_initializer(graph, value, by_rows)
    for node, index in uses:
        if node in transposes:
            ir.convenience.replace_all_uses_with(node.outputs[0], table)
        else:
            nodes = Nodes(graph)
            nodes.insert_for_use(node, index, nodes.transpose(table))
    return True
