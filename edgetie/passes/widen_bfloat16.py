"""Compute bfloat16 operators in float32, as ONNX Runtime's CPU provider can."""

import onnx_ir as ir

from edgetie.graph.editing import insert
from edgetie.passes.base import GraphPass


class WidenBfloat16(GraphPass):
    """Computes in float32 what is computed in bfloat16, and rounds each result to bfloat16.

    Falcon's slopes (ALiBi, Press et al. 2021) are bfloat16 whatever the type of its weights is. The
    CPU provider has no multiplication of bfloat16.
    """

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            results = [value for value in node.outputs if value.dtype == ir.DataType.BFLOAT16]
            if node.op_type in ("Cast", "Constant") or not results:
                continue
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype == ir.DataType.BFLOAT16:
                    widen = _cast(value, ir.DataType.FLOAT)
                    insert(node, widen)
                    node.replace_input_with(index, widen.outputs[0])
            for value in results:
                narrow = _cast(value, ir.DataType.BFLOAT16)
                value.type = ir.TensorType(ir.DataType.FLOAT)
                assert node.graph is not None
                node.graph.insert_after(node, narrow)
                for user, index in list(value.uses()):
                    if user is not narrow:
                        user.replace_input_with(index, narrow.outputs[0])
            self.changed += 1


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": ir.AttrInt64("to", dtype.value)})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    return node
