"""How far a traced program holds: torch proves bounds of its dimensions while it traces.

A branch that a model takes on the length of its input is traced for one side only. What bounds the
length from above is either a table of positions, which is the model's own limit, or such a branch,
which is an accident of the example's size.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch.utils._sympy.value_ranges import bound_sympy

from edgetie.errors import UnfusableError
from edgetie.export.tasks.base import FRAMES, Graph

_FEWEST = 64
"""A limit below is no table of positions."""
_UNLIMITED = torch.iinfo(torch.int64).max // 2


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest sizes of a program's dimensions, by name; without limit ``None``."""

    ranges: dict[str, tuple[int, int | None]]

    def longest(self, configured: int | None, sizes: Collection[int] = ()) -> int | None:
        """The longest sequence, at most as long as the configuration says.

        Args:
            configured: that length.
            sizes: of the module's tensors; a bound that is one of them is the model's own.

        Raises:
            UnfusableError: if the program holds for short sequences or few rows only.
        """
        upper = {
            name: high
            for name, (_, high) in self.ranges.items()
            if high is not None and name != FRAMES
        }
        if "batch_size" in upper:
            raise UnfusableError(f"holds for batches of up to {upper['batch_size']} only")
        # past + sequence <= limit shows as a bound of each, less the smallest size of the other
        joint = {
            upper[name] + self.ranges[other][0]
            for name, other in (
                ("sequence_length", "past_sequence_length"),
                ("past_sequence_length", "sequence_length"),
            )
            if name in upper and other in upper
        }
        if len(joint) == 1:
            del upper["sequence_length"], upper["past_sequence_length"]
            joint.add(upper.get("total_sequence_length", *joint))
            upper["total_sequence_length"] = min(joint)
        if "past_sequence_length" in upper:
            upper["past_sequence_length"] += 1  # one more token is read than what is cached
        fewest = min(upper.values(), default=_FEWEST)
        if fewest < min(_FEWEST, configured or _FEWEST) and fewest not in sizes:
            raise UnfusableError(f"holds for up to {fewest} tokens only")
        return min([*upper.values(), *([configured] if configured else [])], default=None)


def read_bounds(program: torch.export.ExportedProgram, graph: Graph) -> Bounds:
    """What torch found out about the dimensions that ``graph`` names."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    shapes = {
        name: placeholders[str(target)].meta["val"].shape
        for name, target in zip(graph.inputs, program.graph_signature.user_inputs, strict=True)
    }
    ranges: dict[str, tuple[int, int | None]] = {}
    for name, axis, dimension in graph.dimensions:
        size = shapes[name][axis]
        if not isinstance(size, torch.SymInt):
            continue  # of one size by declaration, as features of fixed length are
        low, high = _range(size, program)
        before_low, before_high = ranges.get(dimension, (low, high))
        highs = [limit for limit in (high, before_high) if limit is not None]
        ranges[dimension] = max(low, before_low), min(highs, default=None)
    return Bounds(ranges)


def _range(size: torch.SymInt, program: torch.export.ExportedProgram) -> tuple[int, int | None]:
    found = bound_sympy(size.node.expr, program.range_constraints)
    unlimited = not found.upper.is_finite or found.upper >= _UNLIMITED
    return int(found.lower), None if unlimited else int(found.upper)
