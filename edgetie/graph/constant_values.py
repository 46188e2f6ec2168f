"""Find the values of a graph that are the same in every run, and what they are computed from."""

import logging
from collections.abc import Collection, Mapping

import onnx_ir as ir

from edgetie.graph.constants import MIN_ELEMENTS, OVERRIDABLE_IR_VERSION
from edgetie.graph.evaluation import evaluator
from edgetie.graph.matching import weight

_RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
}  # fmt: skip

ConstantValues = Mapping[ir.Value, frozenset[ir.Value]]
"""Values that are computed from constants only, and the weights that each is computed from."""

logger = logging.getLogger(__name__)


def is_deterministic(node: ir.Node) -> bool:
    """Whether a node of a standard operator depends on nothing but its inputs."""
    return (
        node.domain == ""
        and node.op_type not in _RANDOM
        and not any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        )
    )


def constant_values(model: ir.Model) -> ConstantValues:
    """Map every value that is computed from constants only to the weights it is computed from.

    Weights are initializers with at least ``MIN_ELEMENTS`` elements; they map to themselves. An
    initializer that a caller may override as an input is not constant. The graph is sorted first.
    """
    model.graph.sort()
    may_override = (model.ir_version or 0) >= OVERRIDABLE_IR_VERSION
    weights: dict[ir.Value, frozenset[ir.Value]] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if not (value.is_graph_input() and may_override):
                weights[value] = frozenset([value]) if _is_weight(value) else frozenset()
    for node in model.graph.all_nodes():
        inputs = [value for value in node.inputs if value is not None]
        if is_deterministic(node) and all(value in weights for value in inputs):
            union = frozenset[ir.Value]().union(*(weights[value] for value in inputs))
            weights.update(dict.fromkeys(node.outputs, union))
    return weights


def _is_weight(value: ir.Value) -> bool:
    tensor = weight(value)
    return tensor is not None and tensor.size >= MIN_ELEMENTS


def constant_tensor(value: ir.Value, weights: Collection[ir.Value]) -> ir.TensorProtocol | None:
    """Return the tensor of a constant value of the main graph, computed when it is read.

    Args:
        value: of known type and shape.
        weights: what it is computed from, as :func:`constant_values` returns it.

    Returns:
        ``None`` if ONNX Runtime cannot compute it.
    """
    if value.const_value is not None:
        return value.const_value
    graph, shape, dtype = value.graph, static_shape(value), value.dtype
    if not isinstance(graph, ir.Graph) or shape is None or dtype is None:
        return None
    inputs = {str(weight.name): weight.const_value for weight in weights}
    try:
        run = evaluator(ir.convenience.extract(graph, list(weights), [value]))
    except Exception:  # pybind11 classes without a common base
        logger.debug("%s: cannot be computed", value.name, exc_info=True)
        return None

    def compute() -> ir.TensorProtocol:
        feeds = {name: tensor.numpy() for name, tensor in inputs.items() if tensor is not None}
        return ir.tensor(run(feeds)[0])

    return ir.LazyTensor(compute, dtype, ir.Shape(shape), name=value.name)


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return the shape of a value if all its dimensions are known numbers."""
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(value.shape.numpy())
