"""One form for every projection: ``MatMul(x, W[in, out])``, then perhaps ``Add(bias)``."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import initializer, insert, prune, replace
from edgetie.graph.matching import (
    attribute_ints,
    last_dimension,
    only_user,
    producer,
    same_shape,
    weight,
)
from edgetie.graph.operators import operator
from edgetie.passes.base import GraphPass


class GemmToMatMul(GraphPass):
    """Rewrites Gemm, and MatMul over a transposed weight, into MatMul over ``W[in, out]``.

    The weight is transposed by reference: its bytes are laid out anew only when the file is
    written. A tied weight keeps its Transpose; the ``head`` pass deals with it.
    """

    name = "linear"

    def rewrite(self, model: ir.Model) -> None:
        for graph in model.graphs():
            for node in list(graph):
                if operator(node) == "Gemm":
                    self._gemm(node)
        prune(model)  # a replaced Gemm would still count as a use of its weight
        for node in list(model.graph):
            if operator(node) == "Transpose":
                self._transpose(model.graph, node)

    def _gemm(self, node: ir.Node) -> None:
        """``Reshape(Gemm(Reshape(x), W, b))`` is ``MatMul(x, W) + b``."""
        factors = [node.attributes[n].as_float() for n in ("alpha", "beta") if n in node.attributes]
        transposed = "transA" in node.attributes and node.attributes["transA"].as_int() != 0
        if transposed or any(factor != 1.0 for factor in factors):
            return
        x, w = node.inputs[0], node.inputs[1]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        assert x is not None
        assert w is not None
        outer, flat = only_user(node.outputs[0], "Reshape"), producer(x, "Reshape")
        result = node.outputs[0]
        if outer is not None and flat is not None and _is_row(bias):
            inner = flat.inputs[0]
            assert inner is not None
            if _leading_equal(inner, outer.outputs[0]) and last_dimension(inner) == last_dimension(
                x
            ):
                x, result = inner, outer.outputs[0]
        nodes: list[ir.Node] = []
        if "transB" in node.attributes and node.attributes["transB"].as_int() != 0:
            nodes.append(ir.node("Transpose", [w], {"perm": [1, 0]}))
            w = nodes[-1].outputs[0]
        nodes.append(ir.node("MatMul", [x, w], name=node.name))
        if bias is not None:
            nodes[-1].outputs[0].shape, nodes[-1].outputs[0].type = result.shape, result.type
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias]))
        insert(node, *nodes)
        replace(result, nodes[-1].outputs[0])
        self.changed += 1

    def _transpose(self, graph: ir.Graph, node: ir.Node) -> None:
        source = node.inputs[0]
        tensor = weight(source)
        if source is None or tensor is None or len(tensor.shape) != 2:
            return
        if attribute_ints(node, "perm") == [0, 1]:
            replace(node.outputs[0], source)
            self.changed += 1
            return
        if tensor.size >= MIN_ELEMENTS and len(source.uses()) != 1:
            return
        rows, columns = tensor.shape.numpy()
        lazy = ir.LazyTensor(
            lambda t=tensor: ir.tensor(np.ascontiguousarray(t.numpy().T)),  # type: ignore[misc]
            dtype=tensor.dtype,
            shape=ir.Shape((columns, rows)),
            name=source.name,
        )
        if len(source.uses()) == 1:
            replace(node.outputs[0], _renamed(graph, source, lazy))
        else:
            replace(node.outputs[0], initializer(graph, f"{source.name}.transposed", lazy))
        self.changed += 1


def _renamed(graph: ir.Graph, old: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    """Put ``tensor`` in the place of ``old``, under its name."""
    name = str(old.name)
    graph.initializers.pop(name)
    return initializer(graph, name, tensor)


def _is_row(bias: ir.Value | None) -> bool:
    """Whether every row of a product is given the same."""
    shape = bias.shape if bias is not None else ir.Shape([])
    return shape is not None and (len(shape) < 2 or (len(shape) == 2 and shape[0] == 1))


def _leading_equal(a: ir.Value, b: ir.Value) -> bool:
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    left = ir.Value(shape=ir.Shape(list(a.shape)[:-1]))
    right = ir.Value(shape=ir.Shape(list(b.shape)[:-1]))
    return same_shape(left, right)
