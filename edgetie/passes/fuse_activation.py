"""Fuse activations that are traced as several operators (Hendrycks & Gimpel 2016)."""

import math
from typing import Any

import onnx_ir as ir

from edgetie.graph.constants import MICROSOFT
from edgetie.passes.base import GraphPass


class FuseActivation(GraphPass):
    """Fuses SiLU into QuickGelu with ``alpha`` 1, and the tanh form of GELU into FastGelu."""

    def rewrite(self, model: ir.Model) -> None:
        from onnxscript.rewriter import pattern

        silu = pattern.RewriteRule(
            lambda op, x: op.Mul(x, op.Sigmoid(x)),
            lambda op, x: op.QuickGelu(x, alpha=1.0, _domain=MICROSOFT),
        )
        gelu = pattern.RewriteRule(_gelu, lambda op, x: op.FastGelu(x, _domain=MICROSOFT))
        self.changed = pattern.RewriteRuleSet([silu, gelu], commute=True).apply_to_model(model)


def _gelu(op: Any, x: Any) -> Any:
    """Match ``0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))``, the operands in any order."""
    argument = op.Add(x, op.Mul(op.Pow(x, 3.0), 0.044715))
    tanh = op.Tanh(op.Mul(argument, math.sqrt(2 / math.pi)))
    return op.Mul(op.Mul(x, 0.5), op.Add(tanh, 1.0))
