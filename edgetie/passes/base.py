"""The base class of graph passes, and a function that runs passes in order."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.errors import EdgetieError
from edgetie.graph.constants import MICROSOFT
from edgetie.ties.groups import TieGroup, verify_ties


class GraphPass(ir.passes.InPlacePass):
    """A pass that edits the graph in place and keeps every tied weight a single initializer.

    Attributes:
        name: the pass in reports and errors: the name of its module, unless the class sets one.
        ties: the groups verified after the pass.
        changed: how many places it rewrote.
        skipped: places that looked right and did not match, and why.
    """

    name = ""

    def __init_subclass__(cls) -> None:
        if "name" not in cls.__dict__:
            cls.name = cls.__module__.rpartition(".")[2]

    def __init__(self) -> None:
        self.ties: Sequence[TieGroup] = ()
        self.changed = 0
        self.skipped: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.rewrite(model)
        if self.changed:
            common.RemoveUnusedNodesPass()(model)
            common.NameFixPass()(model)
            if any(node.domain == MICROSOFT for node in model.graph):
                model.graph.opset_imports.setdefault(MICROSOFT, 1)
        return ir.passes.PassResult(model, modified=bool(self.changed))

    def rewrite(self, model: ir.Model) -> None:
        """Edit ``model``. Count the changes in ``changed`` and explain in ``skipped``."""
        raise NotImplementedError

    def ensures(self, model: ir.Model) -> None:
        verify_ties(model, self.ties, where=f"pass {self.name}")


class WeightPass(GraphPass):
    """A pass that changes weights.

    Args:
        fixed: names of weights that stay, because other models read them too.
    """

    def __init__(self, fixed: Collection[str] = ()) -> None:
        super().__init__()
        self.fixed = fixed


@dataclass(frozen=True)
class PassReport:
    """How many places a pass changed, how long it took, and what it skipped and why."""

    name: str
    changed: int
    seconds: float
    skipped: tuple[str, ...]


def run_passes(
    model: ir.Model, ties: Sequence[TieGroup], passes: Sequence[GraphPass]
) -> list[PassReport]:
    """Run ``passes`` on ``model`` in place. The groups in ``ties`` must hold after each.

    Raises:
        TieError: naming the pass and the weight.
    """
    reports = []
    for step in passes:
        start = time.perf_counter()
        step.ties = ties
        try:
            step(model)
        except (ir.passes.PassError, ir.passes.InvariantError) as error:
            if isinstance(error.__cause__, EdgetieError):
                raise error.__cause__ from None
            raise
        seconds = time.perf_counter() - start
        reports.append(PassReport(step.name, step.changed, seconds, tuple(step.skipped)))
    return reports
