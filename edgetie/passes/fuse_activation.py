"""Fuse activations that are traced as several operators (Hendrycks & Gimpel 2016)."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from edgetie.graph.constants import MICROSOFT
from edgetie.passes.base import GraphPass


class FuseActivation(GraphPass):
    """Fuses SiLU into QuickGelu with ``alpha`` 1, and the tanh form of GELU into FastGelu."""

    def rewrite(self, model: ir.Model) -> None:
        from onnxscript.rewriter import pattern

        rules = [pattern.RewriteRule(_silu, _quick_gelu), pattern.RewriteRule(_gelu, _fast_gelu)]
        self.changed = pattern.RewriteRuleSet(rules, commute=True).apply_to_model(model)


def _silu(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(x))


def _quick_gelu(op: Any, x: ir.Value) -> Any:
    return op.QuickGelu(x, alpha=1.0, _domain=MICROSOFT)


def _gelu(op: Any, x: Any) -> Any:
    """Match ``0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))``."""
    argument = op.Add(x, op.Mul(op.Pow(x, 3.0), 0.044715))
    tanh = op.Tanh(op.Mul(argument, math.sqrt(2 / math.pi)))
    return op.Mul(op.Mul(x, 0.5), op.Add(tanh, 1.0))


def _fast_gelu(op: Any, x: ir.Value) -> Any:
    return op.FastGelu(x, _domain=MICROSOFT)
