"""Clean up a graph with the passes of onnxscript and onnx-ir."""

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.passes.base import GraphPass

_FOLD_LIMIT = 1 << 14  # elements: norm weights and biases, never a matrix


class CleanUp(GraphPass):
    """Folds small constants, shares equal expressions and removes unused nodes.

    Afterwards all constants are initializers. There are no identities and no two equal expressions.
    A Transpose of a weight is never folded: the result would be a copy of a tied weight.

    Args:
        fold: compute constant expressions. Not wanted after the pass ``fuse_rotary``, whose tables
            are computed when a session starts.
    """

    def __init__(self, *, fold: bool = True) -> None:
        super().__init__()
        self.fold = fold

    def rewrite(self, model: ir.Model) -> None:
        from onnxscript import optimizer

        before = len(model.graph)
        common.InlinePass()(model)
        if self.fold:
            optimizer.fold_constants(
                model,
                onnx_shape_inference=False,
                input_size_limit=_FOLD_LIMIT,
                output_size_limit=_FOLD_LIMIT,
                should_fold=lambda node: False if _transposes_weight(node) else None,
            )
        for step in (
            common.RemoveUnusedNodesPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.IdentityEliminationPass(),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.ClearMetadataAndDocStringPass(),
        ):
            step(model)
        self.changed = before - len(model.graph)


def _transposes_weight(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and any(
        value is not None
        and value.const_value is not None
        and value.const_value.size >= MIN_ELEMENTS
        for value in node.inputs
    )
