"""Remove Transposes, Reshapes and Slices that have no effect together."""

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import replace
from edgetie.graph.matching import attribute_ints, constant, only_user, producer, same_shape
from edgetie.passes.base import GraphPass

_END = (1 << 31) - 1  # a Slice with this end or a larger one runs to the end


class CancelTransposes(GraphPass):
    """Removes inverse pairs, so that projections feed attention directly.

    Afterwards no Transpose reads a Transpose with the inverse permutation, no Reshape reads a
    Reshape, no Reshape has the shape of its input, and no Slice returns all of its input.
    """

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if node.op_type == "Transpose":
                self._remove_transposes(node)
            elif node.op_type == "Reshape":
                self._remove_reshapes(node)
            elif node.op_type == "Slice":
                self._remove_slice(node)

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        replace(old, new)
        self.changed += 1

    def _remove_transposes(self, outer: ir.Node) -> None:
        """Remove ``Transpose(Transpose(x))`` and the pair of ``Transpose(f(Transpose(x)))``.

        ``f`` works along the last axis at most, and the Transposes leave that axis alone.
        """
        inner, function = producer(outer.inputs[0], "Transpose"), None
        if inner is None:
            function = producer(outer.inputs[0], "RMSNormalization", "Mul", "Add", "Div")
            inner = producer(function.inputs[0], "Transpose") if function else None
        if inner is None or inner.inputs[0] is None:
            return
        outer_perm, inner_perm = attribute_ints(outer, "perm"), attribute_ints(inner, "perm")
        if outer_perm is None or inner_perm is None:
            return
        identity = list(range(len(inner_perm)))
        if [inner_perm[i] for i in outer_perm] != identity:
            return
        if function is None:
            self._replace(outer.outputs[0], inner.inputs[0])
        elif inner_perm[-1] == identity[-1] and _works_along_last_axis(function, outer):
            function.replace_input_with(0, inner.inputs[0])
            function.outputs[0].shape = outer.outputs[0].shape
            self._replace(outer.outputs[0], function.outputs[0])

    def _remove_reshapes(self, node: ir.Node) -> None:
        source = node.inputs[0]
        inner = producer(source, "Reshape")
        if inner is not None and inner.inputs[0] is not None and not _copies_dimensions(node):
            node.replace_input_with(0, inner.inputs[0])
            source = inner.inputs[0]
            self.changed += 1
        if source is not None and same_shape(source, node.outputs[0]):
            self._replace(node.outputs[0], source)

    def _remove_slice(self, node: ir.Node) -> None:
        """Remove ``x[0:]`` along any axes."""
        starts, ends = constant(node.inputs[1]), constant(node.inputs[2])
        steps = constant(node.inputs[4]) if len(node.inputs) > 4 else np.array([1])
        if starts is None or ends is None or steps is None or node.inputs[0] is None:
            return
        if (starts == 0).all() and (ends >= _END).all() and (steps == 1).all():
            self._replace(node.outputs[0], node.inputs[0])


def _works_along_last_axis(function: ir.Node, user: ir.Node) -> bool:
    """Whether the other operands are constant vectors and ``user`` is the only user."""
    others = [constant(value) for value in function.inputs[1:]]
    return only_user(function.outputs[0]) is user and all(
        other is not None and other.ndim <= 1 for other in others
    )


def _copies_dimensions(reshape: ir.Node) -> bool:
    """Whether the shape may contain a 0, which stands for the dimension of the input."""
    if reshape.attributes.get_int("allowzero", 0):
        return False
    concat = producer(reshape.inputs[1], "Concat")
    parts = concat.inputs if concat is not None else [reshape.inputs[1]]
    constants = [constant(part) for part in parts]
    return any(part is not None and (part == 0).any() for part in constants)
