"""Fold what is computed from small constants only."""

from collections.abc import Mapping

import onnx_ir as ir

from edgetie.errors import BundleError, summarize
from edgetie.graph.constant_values import is_deterministic
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import initializer, replace
from edgetie.graph.evaluation import evaluate
from edgetie.passes.base import GraphPass


class FoldConstants(GraphPass):
    """Replaces nodes that read constants only, as ONNX Runtime does when a session starts.

    A session may then start without optimizing the graph. A node that reads a larger weight stays:
    its result would be a copy of the weight.

    Raises:
        BundleError: if a node's constants do not fit it.
    """

    def rewrite(self, model: ir.Model) -> None:
        folded: dict[ir.Value, None] = {}  # in graph order: the same bundle at every call
        for node in model.graph:
            if (
                node.inputs
                and is_deterministic(node)
                and all(_is_small(value, folded) for value in node.inputs)
            ):
                folded.update(dict.fromkeys(node.outputs))
        results = [
            value
            for value in folded
            if any(not folded.keys() >= set(user.outputs) for user, _ in value.uses())
        ]
        if not results:
            return
        model.graph.sort()
        try:
            arrays = evaluate(ir.convenience.extract(model.graph, [], results))
        except Exception as error:  # pybind11 classes without a common base
            raise BundleError(
                f"ONNX Runtime cannot compute a constant ({summarize(error)}); export it again"
            ) from error
        for value, array in zip(results, arrays, strict=True):
            replace(value, initializer(model.graph, f"{value.name}.folded", array))
            self.changed += 1


def _is_small(value: ir.Value | None, folded: Mapping[ir.Value, None]) -> bool:
    if value is None or value in folded:
        return True
    tensor = value.const_value
    return value.is_initializer() and tensor is not None and tensor.size < MIN_ELEMENTS
