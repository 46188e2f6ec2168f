"""Activations that arrive in pieces, as one operator each."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgetie.graph.constants import MICROSOFT
from edgetie.graph.editing import insert, replace
from edgetie.graph.matching import only_user, producer, scalar
from edgetie.passes.base import GraphPass


class FuseActivation(GraphPass):
    """``x * sigmoid(x)`` becomes QuickGelu, GELU in its tanh form FastGelu.

    Both after Hendrycks & Gimpel 2016; QuickGelu with ``alpha`` 1 is SiLU.
    """

    name = "activation"

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if node.op_type == "Sigmoid":
                self._silu(node)
            elif node.op_type == "Tanh":
                self._gelu(node)

    def _silu(self, node: ir.Node) -> None:
        x = node.inputs[0]
        product = only_user(node.outputs[0], "Mul")
        if x is not None and product is not None and x in product.inputs:
            self._put(product, ir.node("QuickGelu", [x], {"alpha": 1.0}, domain=MICROSOFT))

    def _gelu(self, node: ir.Node) -> None:
        """``0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))``, its factors in any order."""
        inner = _scaled(node.inputs[0], math.sqrt(2 / math.pi))
        total = producer(inner, "Add")
        plus_one = only_user(node.outputs[0], "Add")
        product = only_user(plus_one.outputs[0], "Mul") if plus_one else None
        if total is None or plus_one is None or product is None:
            return
        if 1.0 not in (scalar(plus_one.inputs[0]), scalar(plus_one.inputs[1])):
            return
        for x, cubic in (total.inputs, tuple(reversed(total.inputs))):
            power = producer(_scaled(cubic, 0.044715), "Pow")
            if power is None or power.inputs[0] is not x or scalar(power.inputs[1]) != 3:
                continue
            assert x is not None
            fused = ir.node("FastGelu", [x], domain=MICROSOFT)
            other = product.inputs[0 if product.inputs[1] is plus_one.outputs[0] else 1]
            if _scaled(other, 0.5) is x:
                self._put(product, fused)
            return

    def _put(self, last: ir.Node, fused: ir.Node) -> None:
        fused.name = last.name
        insert(last, fused)
        replace(last.outputs[0], fused.outputs[0])
        self.changed += 1


def _scaled(value: ir.Value | None, factor: float) -> ir.Value | None:
    """The x of ``x * factor``."""
    product = producer(value, "Mul")
    if product is None:
        return None
    for x, other in (product.inputs, tuple(reversed(product.inputs))):
        number = scalar(other)
        if number is not None and math.isclose(number, factor, rel_tol=1e-6):
            return x
    return None
