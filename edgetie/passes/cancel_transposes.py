"""Transposes and Reshapes that undo each other, removed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import replace
from edgetie.graph.matching import attribute_ints, constant, only_user, producer, same_shape
from edgetie.passes.base import GraphPass

_END = (1 << 31) - 1  # a Slice that ends here or later runs to the end


class CancelTransposes(GraphPass):
    """Removes inverse pairs, so projections feed attention directly.

    Leaves: no Transpose of a Transpose with the inverse permutation, no Reshape of a Reshape, no
    Reshape to the shape its input has.
    """

    name = "layout"

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if node.op_type == "Transpose":
                self._transpose(node)
            elif node.op_type == "Reshape":
                self._reshape(node)
            elif node.op_type == "Slice":
                self._slice(node)

    def _transpose(self, node: ir.Node) -> None:
        inner = producer(node.inputs[0], "Transpose")
        if inner is None:
            self._around(node)
            return
        outer_perm, inner_perm = attribute_ints(node, "perm"), attribute_ints(inner, "perm")
        if outer_perm is None or inner_perm is None or inner.inputs[0] is None:
            return
        if [inner_perm[i] for i in outer_perm] == list(range(len(inner_perm))):
            replace(node.outputs[0], inner.inputs[0])
            self.changed += 1

    def _around(self, node: ir.Node) -> None:
        """``Transpose(f(Transpose(x)))`` with an f that works along the last axis at most."""
        function = producer(node.inputs[0], "RMSNormalization", "Mul", "Add", "Div")
        inner = producer(function.inputs[0], "Transpose") if function else None
        if function is None or inner is None or only_user(function.outputs[0]) is not node:
            return
        others = [constant(value) for value in function.inputs[1:]]
        if any(other is None or other.ndim > 1 for other in others):
            return
        outer_perm, inner_perm = attribute_ints(node, "perm"), attribute_ints(inner, "perm")
        if outer_perm is None or inner_perm is None or inner.inputs[0] is None:
            return
        count = len(inner_perm)
        if [inner_perm[i] for i in outer_perm] != list(range(count)) or inner_perm[-1] != count - 1:
            return
        function.replace_input_with(0, inner.inputs[0])
        result = function.outputs[0]
        result.shape = node.outputs[0].shape
        replace(node.outputs[0], result)
        self.changed += 1

    def _reshape(self, node: ir.Node) -> None:
        source = node.inputs[0]
        inner = producer(source, "Reshape")
        if inner is not None and inner.inputs[0] is not None and not _copies_dimensions(node):
            node.replace_input_with(0, inner.inputs[0])
            source = inner.inputs[0]
            self.changed += 1
        if source is not None and same_shape(source, node.outputs[0]):
            replace(node.outputs[0], source)
            self.changed += 1

    def _slice(self, node: ir.Node) -> None:
        """``x[0:]`` along every axis it names."""
        starts, ends = constant(node.inputs[1]), constant(node.inputs[2])
        steps = constant(node.inputs[4]) if len(node.inputs) > 4 else np.array([1])
        if starts is None or ends is None or steps is None or node.inputs[0] is None:
            return
        if (starts == 0).all() and (ends >= _END).all() and (steps == 1).all():
            replace(node.outputs[0], node.inputs[0])
            self.changed += 1


def _copies_dimensions(node: ir.Node) -> bool:
    """Whether a Reshape's shape may hold a 0 that stands for "as in the input"."""
    if "allowzero" in node.attributes and node.attributes["allowzero"].as_int():
        return False
    shape = node.inputs[1]
    join = producer(shape, "Concat")
    parts = list(join.inputs) if join is not None else [shape]
    fixed = [constant(part) for part in parts]
    return any(part is not None and (part == 0).any() for part in fixed)
