"""Roles of linear layers in a model, by the graph around them: some lose more than others.

Rounded to 4 bits, the layers of these roles cost a model the most accuracy for their size.
"""

from collections.abc import Collection

import onnx_ir as ir

from edgetie.graph.matching import last_dimension, operator, other_operand, producer, weight
from edgetie.quantize.preprocess.adapter_inputs import input_up
from edgetie.quantize.weights.linear_op import LinearOp, match_linear_op

_PASSED_THROUGH = ("Reshape", "Transpose", "Split", "RMSNormalization", "LayerNormalization")


def _feeds_attention(linear_op: LinearOp) -> bool:
    """Whether queries, keys or values are computed, perhaps with a bias, an adapter or a norm."""
    values = [linear_op.output]
    while values:
        value = values.pop()
        for user, index in value.uses():
            if operator(user) == "GroupQueryAttention" and index < 3:
                return True
            other = other_operand(user, value) if operator(user) in ("Add", "Mul") else None
            is_added = weight(other) is not None or input_up(other) is not None
            if is_added or operator(user) in _PASSED_THROUGH:
                values += user.outputs
    return False


def _reads_product(linear_op: LinearOp) -> bool:
    """Whether the input is a product of two activations, as that of a gate."""
    product = producer(linear_op.x, "Mul")
    factors = product.inputs if product is not None else []
    return len(factors) == 2 and all(
        factor is not None
        and weight(factor) is None
        and last_dimension(factor) == linear_op.in_channels
        for factor in factors
    )


ROLES = {"attention": _feeds_attention, "gated": _reads_product}
"""What decides whether a linear operator has a role, by the names of roles that
:class:`edgetie.targets.Scheme` uses."""


def weights_with_roles(graph: ir.Graph, roles: Collection[str]) -> set[str]:
    """Return the names of the weights of linear layers that have one of these roles."""
    linear_ops = [match_linear_op(node) for node in graph]
    return {
        str(linear_op.weight.name)
        for linear_op in linear_ops
        if linear_op is not None and any(ROLES[role](linear_op) for role in roles)
    }
