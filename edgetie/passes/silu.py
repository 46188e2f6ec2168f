"""``x * sigmoid(x)`` as one operator."""

from __future__ import annotations

import onnx_ir as ir

from edgetie.passes._base import MICROSOFT, GraphPass, insert, only_user, replace


class Silu(GraphPass):
    """SiLU (Hendrycks & Gimpel 2016) as QuickGelu with ``alpha`` 1."""

    name = "silu"

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if node.op_type != "Sigmoid":
                continue
            x = node.inputs[0]
            product = only_user(node.outputs[0], "Mul")
            if x is None or product is None or x not in product.inputs:
                continue
            fused = ir.node("QuickGelu", [x], {"alpha": 1.0}, domain=MICROSOFT, name=node.name)
            insert(product, fused)
            replace(product.outputs[0], fused.outputs[0])
            self.changed += 1
