"""Fuse a residual sum and the norm that follows it into one operator."""

import onnx_ir as ir

from edgetie.graph.constants import MICROSOFT
from edgetie.graph.editing import replace
from edgetie.graph.matching import producer, same_shape
from edgetie.passes.base import GraphPass

_FUSED = {
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}


class FuseSkipNorm(GraphPass):
    """Fuses ``Norm(a + b)`` into Skip(Simplified)LayerNormalization, which returns the sum too."""

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if node.op_type in _FUSED:
                self._fuse(node)

    def _fuse(self, norm: ir.Node) -> None:
        add = producer(norm.inputs[0], "Add")
        if add is None or len(norm.outputs) != 1:
            return
        a, b = add.inputs
        total = add.outputs[0]
        axis = norm.attributes.get_int("axis", -1)
        rank = len(total.shape) if total.shape is not None else 0
        if a is None or b is None or rank != 3 or axis not in (-1, 2):
            return
        if not same_shape(a, total) or not same_shape(b, total):
            return
        fused = ir.node(
            _FUSED[norm.op_type],
            [a, b, *norm.inputs[1:]],
            {"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
            domain=MICROSOFT,
            num_outputs=4,
            name=norm.name,
        )
        assert add.graph is not None
        add.graph.insert_after(add, [fused])  # other nodes may use the sum before the norm does
        fused.outputs[0].name, fused.outputs[3].name = f"{norm.name}.normed", f"{norm.name}.sum"
        fused.outputs[1].name = fused.outputs[2].name = ""
        replace(norm.outputs[0], fused.outputs[0])
        replace(total, fused.outputs[3])
        self.changed += 1
