"""Small constants folded, equal expressions shared, dead nodes removed: onnxscript and onnx-ir."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.passes.base import GraphPass

_FOLD_LIMIT = 1 << 14  # elements: norm weights and biases, never a matrix


class CleanUp(GraphPass):
    """Leaves: constants as initializers, no identities, no two equal expressions.

    A Transpose is never folded: the folded copy would part a tied weight from its twin.

    Args:
        fold: compute constant expressions; not wanted behind the ``rotary`` pass, whose tables are
            computed when a session starts.
    """

    name = "normalize"

    def __init__(self, *, fold: bool = True) -> None:
        super().__init__()
        self.fold = fold

    def rewrite(self, model: ir.Model) -> None:
        from onnxscript import optimizer

        def should_fold(node: ir.Node) -> bool | None:
            if node.op_type == "Transpose" and any(
                value is not None
                and value.const_value is not None
                and value.const_value.size >= MIN_ELEMENTS
                for value in node.inputs
            ):
                return False
            return None

        before = len(model.graph)
        common.InlinePass()(model)
        if self.fold:
            optimizer.fold_constants(
                model,
                onnx_shape_inference=False,
                input_size_limit=_FOLD_LIMIT,
                output_size_limit=_FOLD_LIMIT,
                should_fold=should_fold,
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
