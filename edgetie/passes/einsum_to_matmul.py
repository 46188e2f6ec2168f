"""Write an Einsum with a weight as a MatMul with it."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import onnx_ir as ir

from edgetie.graph.constant_values import ConstantValues, constant_values, static_shape
from edgetie.graph.matching import operator, rank
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass

_ELLIPSIS = "..."


class EinsumToMatMul(GraphPass):
    """Rewrites an Einsum that sums over the first or the last axes of a weight, or of what is
    computed from one, and keeps the others: a MatMul, with an Einsum of the other operands before
    or after it if they need one.
    """

    def rewrite(self, model: ir.Model) -> None:
        weights = constant_values(model)
        queue = [node for node in model.graph.all_nodes() if operator(node) == "Einsum"]
        while queue:
            node = queue.pop()
            if node.outputs[0] in weights:
                continue
            product = next(_products(node, weights), None)
            if product is not None and _has_known_rank(product):
                queue += _rewrite(model.graph, node, product)
                self.changed += 1


class _Term(NamedTuple):
    """An operand and the labels of its axes; an ellipsis is a label too."""

    value: ir.Value
    labels: tuple[str, ...]


class _Product(NamedTuple):
    """An Einsum as a product with a weight.

    Attributes:
        matrix: the weight.
        summed: the labels of the axes that are summed over.
        kept: the labels of its other axes.
        before: operands that are multiplied before the product.
        after: operands with one of the other axes, multiplied after it.
        output: labels of the result.
    """

    matrix: _Term
    summed: tuple[str, ...]
    kept: tuple[str, ...]
    before: list[_Term]
    after: list[_Term]
    output: tuple[str, ...]

    @property
    def leading(self) -> tuple[str, ...]:
        """Labels of the axes that a MatMul leaves as they are, an ellipsis first."""
        needed = {*self.output}.union(*(term.labels for term in self.after))
        every = dict.fromkeys(label for term in self.before for label in term.labels)
        named = [label for label in every if label in needed and label != _ELLIPSIS]
        return (*([_ELLIPSIS] if _ELLIPSIS in every else []), *named)

    def sizes(self, labels: Sequence[str]) -> list[int]:
        """Return the sizes of the weight's axes."""
        shape = static_shape(self.matrix.value) or ()
        sizes = dict(zip(self.matrix.labels, shape, strict=True))
        return [sizes[label] for label in labels]


def _products(node: ir.Node, weights: ConstantValues) -> Iterator[_Product]:
    """Yield the ways to see an Einsum as a product with a weight."""
    terms, output = _parse(node)
    if any(len({*term.labels}) < len(term.labels) for term in terms):  # selects a diagonal
        return
    for index, matrix in enumerate(terms):
        labels, shape = matrix.labels, static_shape(matrix.value)
        labels = tuple(label for label in labels if label != _ELLIPSIS)  # it stands for no axes
        if not weights.get(matrix.value) or shape is None or len(shape) != len(labels):
            continue
        others = terms[:index] + terms[index + 1 :]
        summed = tuple(label for label in labels if label not in output)
        kept = tuple(label for label in labels if label in output)
        before = [term for term in others if not {*kept} & {*term.labels}]
        after = [term for term in others if {*kept} & {*term.labels}]
        if (
            summed
            and kept
            and labels in (summed + kept, kept + summed)
            and {*summed} <= {label for term in before for label in term.labels}
            and not any({*summed} & {*term.labels} for term in after)
        ):
            yield _Product(_Term(matrix.value, labels), summed, kept, before, after, output)


def _has_known_rank(product: _Product) -> bool:
    """Whether the number of axes is known, if some of several are joined or split."""
    is_plain = len(product.summed) == len(product.kept) == 1
    terms = [term for term in product.before if _ELLIPSIS in term.labels]
    return is_plain or all(term.value.shape is not None for term in terms)


def _parse(node: ir.Node) -> tuple[list[_Term], tuple[str, ...]]:
    """Split an equation into the labels of its operands and of its result."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    parts = [_labels(part) for part in inputs.split(",")]
    terms = [_Term(v, p) for v, p in zip(node.inputs, parts, strict=True) if v is not None]
    if arrow:
        return terms, _labels(output)
    every = [label for part in parts for label in part]
    once = sorted(label for label in every if every.count(label) == 1 and label != _ELLIPSIS)
    return terms, tuple([_ELLIPSIS] * (_ELLIPSIS in every) + once)


def _labels(text: str) -> tuple[str, ...]:
    before, ellipsis, after = text.partition(_ELLIPSIS)
    return (*before, *([ellipsis] if ellipsis else []), *after)


def _rewrite(graph: ir.Graph, node: ir.Node, product: _Product) -> list[ir.Node]:
    """Replace an Einsum. Return the Einsums that are new."""
    nodes, leading = Nodes(graph), product.leading
    summed, kept = product.sizes(product.summed), product.sizes(product.kept)
    x = _einsum(nodes, product.before, (*leading, *product.summed))
    leading_axes = rank(x) - len(summed) if _ELLIPSIS in leading else len(leading)
    if len(summed) > 1:
        x = _reshape_last(nodes, x, leading_axes, [math.prod(summed)])
    result = nodes("MatMul", x, _as_matrix(nodes, product))
    nodes.nodes[-1].name = node.name
    if len(kept) > 1:
        result = _reshape_last(nodes, result, leading_axes, kept)
    term = _Term(result, (*leading, *product.kept))
    nodes.insert_instead_of(node, _einsum(nodes, [term, *product.after], product.output))
    return [each for each in nodes.nodes if each.op_type == "Einsum"]


def _as_matrix(nodes: Nodes, product: _Product) -> ir.Value:
    """Return the weight with one axis to sum over, and one that stays."""
    matrix, labels = product.matrix
    groups = [product.summed, product.kept]
    is_transposed = labels[0] != product.summed[0]
    if len(labels) > 2:
        shape = [math.prod(product.sizes(group)) for group in groups[:: -1 if is_transposed else 1]]
        target = nodes.integers("einsum.matrix." + "_".join(map(str, shape)), shape)
        matrix = nodes("Reshape", matrix, target)
    return nodes.transpose(matrix) if is_transposed else matrix


def _reshape_last(nodes: Nodes, x: ir.Value, leading: int, shape: list[int]) -> ir.Value:
    """Give the axes after the leading ones another shape."""
    target = [0] * leading + shape
    return nodes("Reshape", x, nodes.integers("einsum." + "_".join(map(str, target)), target))


def _einsum(nodes: Nodes, terms: Sequence[_Term], output: tuple[str, ...]) -> ir.Value:
    """Add an Einsum, unless it would return its only operand."""
    if len(terms) == 1 and terms[0].labels == output:
        return terms[0].value
    equation = f"{','.join(''.join(term.labels) for term in terms)}->{''.join(output)}"
    return nodes("Einsum", *(term.value for term in terms), equation=equation)
