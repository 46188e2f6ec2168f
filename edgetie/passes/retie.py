"""Initializers of equal value made one again."""

from __future__ import annotations

import onnx_ir as ir

from edgetie.passes._base import GraphPass
from edgetie.ties import equal_initializers


class Retie(GraphPass):
    """Merges initializers with equal bytes: a checkpoint that stored a tied matrix twice."""

    name = "retie"

    def rewrite(self, model: ir.Model) -> None:
        initializers = model.graph.initializers
        for first, *others in equal_initializers(model):
            keep = initializers[first]
            for name in others:
                copy = initializers[name]
                if tuple(copy.shape or ()) != tuple(keep.shape or ()):
                    self.skipped.append(f"{name}: is {first} transposed")
                    continue
                ir.convenience.replace_all_uses_with(copy, keep)
                initializers.pop(name)
                self.changed += 1
