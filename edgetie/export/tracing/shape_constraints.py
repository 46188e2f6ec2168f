"""Read the ranges of dynamic dimensions for which a traced program holds."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch.utils._sympy.value_ranges import bound_sympy

from edgetie.errors import UnfusableError
from edgetie.export.tasks.base import FRAMES, Graph

_SHORTEST_TABLE = 64
"""A smaller limit is not a table of positions."""
_UNLIMITED = torch.iinfo(torch.int64).max // 2


@dataclass(frozen=True)
class ShapeConstraints:
    """Smallest and largest sizes of a program's dimensions, by name; ``None`` is unlimited."""

    ranges: dict[str, tuple[int, int | None]]

    def max_positions(self, configured: int | None, sizes: Collection[int] = ()) -> int | None:
        """Compute the longest sequence, at most the ``configured`` one.

        A limit comes from a table of positions, then it is one of the ``sizes`` of the module's
        tensors, or from a branch on the length, which is traced for one side only.

        Raises:
            UnfusableError: if the program holds for short sequences or few batch items only.
        """
        upper = {
            name: high
            for name, (_, high) in self.ranges.items()
            if high is not None and name != FRAMES
        }
        if "batch_size" in upper:
            raise UnfusableError(f"holds for batches of up to {upper['batch_size']} only")
        # past + sequence <= limit shows as a limit of each, less the smallest size of the other
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
        lowest = min(upper.values(), default=_SHORTEST_TABLE)
        if lowest < min(_SHORTEST_TABLE, configured or _SHORTEST_TABLE) and lowest not in sizes:
            raise UnfusableError(f"holds for up to {lowest} tokens only")
        return min([*upper.values(), *([configured] if configured else [])], default=None)


def read_shape_constraints(program: torch.export.ExportedProgram, graph: Graph) -> ShapeConstraints:
    """Read what torch proved about the dimensions that ``graph`` names."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    shapes = {
        name: placeholders[str(target)].meta["val"].shape
        for name, target in zip(graph.inputs, program.graph_signature.user_inputs, strict=True)
    }
    ranges: dict[str, tuple[int, int | None]] = {}
    for name, axis, dimension in graph.dimensions:
        size = shapes[name][axis]
        if not isinstance(size, torch.SymInt):
            continue  # fixed by declaration, such as features of fixed length
        low, high = _range(size, program)
        before_low, before_high = ranges.get(dimension, (low, high))
        highs = [limit for limit in (high, before_high) if limit is not None]
        ranges[dimension] = max(low, before_low), min(highs, default=None)
    return ShapeConstraints(ranges)


def _range(size: torch.SymInt, program: torch.export.ExportedProgram) -> tuple[int, int | None]:
    limits = bound_sympy(size.node.expr, program.range_constraints)
    unlimited = not limits.upper.is_finite or limits.upper >= _UNLIMITED
    return int(limits.lower), None if unlimited else int(limits.upper)
