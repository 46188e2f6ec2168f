"""The base of all passes, and the few helpers they share for reading and editing a graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgetie.graph.constants import MICROSOFT
from edgetie.graph.editing import make_names_unique, prune
from edgetie.ties.groups import TieGroup, verify_ties


class GraphPass(ir.passes.InPlacePass):
    """A pass that edits the graph in place and keeps every tied weight one.

    Attributes:
        name: what reports and errors call it.
        ties: the groups verified after the pass.
        changed: how many places it rewrote.
        skipped: places that looked right and did not match, and why.
    """

    name = ""

    def __init__(self) -> None:
        self.ties: Sequence[TieGroup] = ()
        self.changed = 0
        self.skipped: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.rewrite(model)
        if self.changed:
            prune(model)
            make_names_unique(model)
            if any(node.domain == MICROSOFT for node in model.graph):
                model.graph.opset_imports.setdefault(MICROSOFT, 1)
        return ir.passes.PassResult(model, modified=bool(self.changed))

    def rewrite(self, model: ir.Model) -> None:
        """Edit ``model``; count in ``changed``, explain in ``skipped``."""
        raise NotImplementedError

    def ensures(self, model: ir.Model) -> None:
        verify_ties(model, self.ties, where=f"pass {self.name}")
