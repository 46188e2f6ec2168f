"""The likeliest tokens' logits once more, from activations that nothing rounded.

Inside MatMulNBits activations become int8 by blocks. What that rounds away in front of the head
goes into the logits as it is, a quarter of all the noise of activations, and it decides which of
two likely tokens wins. So the rows of the few tokens with the largest logits are looked up in the
table that the head has just multiplied with, and multiplied again in floating point: a hundredth of
a token's time.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetie.passes._base import initializer

LENGTH = 8
"""Logits computed again for each row."""

_PREFIX = "short_list."


def candidates(graph: ir.Graph, logits: ir.Value) -> ir.Node:
    """The node whose outputs are the largest logits ``(…, LENGTH)`` and their tokens."""
    count = initializer(graph, f"{_PREFIX}length", np.array([LENGTH], np.int64))
    return ir.node("TopK", [logits, count], {"axis": -1, "sorted": 0}, num_outputs=2)


def corrected(
    graph: ir.Graph,
    logits: ir.Value,
    tokens: ir.Value,
    x: ir.Value,
    rows: ir.Value,
    bias: ir.Value | None,
) -> list[ir.Node]:
    """``logits`` with those of ``tokens`` replaced by ``rows · x + bias``.

    Args:
        graph: for the constants.
        logits: ``(…, vocabulary)``.
        tokens: ``(…, LENGTH)``.
        x: the head's input ``(…, K)``.
        rows: the tokens' rows of the table ``(…, LENGTH, K)``.
        bias: ``(vocabulary,)``.
    """
    last = initializer(graph, f"{_PREFIX}axis", np.array([-1], np.int64))
    nodes = [ir.node("Unsqueeze", [x, last])]
    nodes.append(ir.node("MatMul", [rows, nodes[-1].outputs[0]]))
    nodes.append(ir.node("Squeeze", [nodes[-1].outputs[0], last]))
    exact = nodes[-1].outputs[0]
    if bias is not None:
        nodes.append(ir.node("Gather", [bias, tokens]))
        nodes.append(ir.node("Add", [exact, nodes[-1].outputs[0]]))
        exact = nodes[-1].outputs[0]
    nodes.append(ir.node("ScatterElements", [logits, tokens, exact], {"axis": -1}))
    return nodes
