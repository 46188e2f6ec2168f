"""Fuse activations that are traced as several operators."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgetie.graph.constants import MICROSOFT
from edgetie.graph.editing import insert, replace
from edgetie.graph.matching import only_user, operand_orders, other_operand, producer, scalar
from edgetie.passes.base import GraphPass


class FuseActivation(GraphPass):
    """Fuses ``x * sigmoid(x)`` into QuickGelu, and the tanh form of GELU into FastGelu.

    Both after Hendrycks & Gimpel 2016. QuickGelu with ``alpha`` 1 is SiLU.
    """

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if node.op_type == "Sigmoid":
                self._fuse_silu(node)
            elif node.op_type == "Tanh":
                self._fuse_gelu(node)

    def _fuse_silu(self, sigmoid: ir.Node) -> None:
        x = sigmoid.inputs[0]
        last = only_user(sigmoid.outputs[0], "Mul")
        if x is not None and last is not None and x in last.inputs:
            self._replace(last, ir.node("QuickGelu", [x], {"alpha": 1.0}, domain=MICROSOFT))

    def _fuse_gelu(self, tanh: ir.Node) -> None:
        """Fuse ``0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))``, its factors in any order."""
        argument = producer(_scaled(tanh.inputs[0], math.sqrt(2 / math.pi)), "Add")
        plus_one = only_user(tanh.outputs[0], "Add")
        last = only_user(plus_one.outputs[0], "Mul") if plus_one else None
        if argument is None or plus_one is None or last is None:
            return
        if scalar(other_operand(plus_one, tanh.outputs[0])) != 1:
            return
        for x, cubic in operand_orders(argument):
            power = producer(_scaled(cubic, 0.044715), "Pow")
            if power is None or power.inputs[0] is not x or scalar(power.inputs[1]) != 3:
                continue
            if _scaled(other_operand(last, plus_one.outputs[0]), 0.5) is x:
                self._replace(last, ir.node("FastGelu", [x], domain=MICROSOFT))
            return

    def _replace(self, last: ir.Node, fused: ir.Node) -> None:
        fused.name = last.name
        insert(last, fused)
        replace(last.outputs[0], fused.outputs[0])
        self.changed += 1


def _scaled(value: ir.Value | None, factor: float) -> ir.Value | None:
    """Return the x of ``x * factor``."""
    multiply = producer(value, "Mul")
    for x, other in operand_orders(multiply) if multiply else ():
        number = scalar(other)
        if number is not None and math.isclose(number, factor, rel_tol=1e-6):
            return x
    return None
