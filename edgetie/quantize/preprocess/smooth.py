"""Smooth activations: move their outlying channels into the weights before both are quantized.

The norm or the projection before divides channels at no cost (SmoothQuant, Xiao et al. 2022; with
scales from activations alone, as in AWQ, Lin et al. 2023). A tied embedding stays as it is: rows
gathered from it would have to be divided again.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer
from edgetie.graph.matching import constant, only_user, operator, producer, rank, weight
from edgetie.passes.base import GraphPass
from edgetie.quantize.preprocess.adapter_inputs import inputs_down
from edgetie.quantize.preprocess.linear_inputs import (
    LinearInput,
    find_linear_inputs,
    transform_weight,
)
from edgetie.quantize.preprocess.value_projection import projection_parameters
from edgetie.quantize.weights.affine import Array

_NORMS = {
    "RMSNormalization": (1,),
    "LayerNormalization": (1, 2),
    "SkipSimplifiedLayerNormalization": (2,),
    "SkipLayerNormalization": (2, 3),
}
"""Norms whose first output is the normalized value, and the inputs that scale it: weight, bias."""


def find_smoothable_inputs(model: ir.Model) -> dict[str, LinearInput]:
    """Find the linear inputs whose channels can be scaled at no cost: after a norm, or a gate."""
    return {
        name: linear_input
        for name, linear_input in find_linear_inputs(model).items()
        if not any(linear_op.gathers for linear_op in linear_input.linear_ops)
        and (_norm(linear_input) is not None or _linear_branch(linear_input) is not None)
    }


class Smooth(GraphPass):
    """Divide activations by scales and multiply the weights that read them."""

    name = "smooth"

    def __init__(self, scales: Mapping[str, Array]) -> None:
        super().__init__()
        self.scales = scales

    def rewrite(self, model: ir.Model) -> None:
        for name, linear_input in find_smoothable_inputs(model).items():
            scales = self.scales.get(name)
            if scales is None:
                continue
            norm, branch = _norm(linear_input), _linear_branch(linear_input)
            if norm is not None:
                for index in _NORMS[norm.op_type]:
                    if index < len(norm.inputs) and norm.inputs[index] is not None:
                        _rescale_input(model.graph, norm, index, 1 / scales)
            elif branch is not None:
                for value, start in branch:
                    _rescale_columns(value, start, 1 / scales)
            for linear_op in linear_input.linear_ops:
                _rescale(linear_op.weight, scales[:, None] if linear_op.transposed else scales)
            for down in inputs_down(linear_input.value):
                _rescale(down, scales[:, None])
            self.changed += 1


def smoothing_scales(magnitudes: Array, strength: float) -> Array:
    """Compute divisors of an activation's channels, whose geometric mean is 1.

    ``strength`` is the exponent on their magnitudes: with 1 all channels become alike.
    """
    floor = max(float(magnitudes.max()) * 1e-4, 1e-12)
    scales = np.maximum(magnitudes, floor) ** strength
    return np.asarray(scales / np.exp(np.log(scales).mean()), np.float32)


def _norm(linear_input: LinearInput) -> ir.Node | None:
    """Find the norm whose output, or a selection of its tokens, the activation is."""
    value = linear_input.value
    selection = producer(value, "GatherND")
    if selection is not None and selection.inputs[0] is not None:
        value = selection.inputs[0]
        if any(user is not selection and operator(user) != "Shape" for user, _ in value.uses()):
            return None
    node = producer(value, *_NORMS)
    if node is None or node.outputs[0] is not value or value.is_graph_output():
        return None
    gains = [node.inputs[i] for i in _NORMS[operator(node)] if i < len(node.inputs)]
    return node if all(weight(gain) is not None for gain in gains if gain is not None) else None


def _linear_branch(linear_input: LinearInput) -> list[tuple[ir.Value, int]] | None:
    """Find weight and bias of the branch of a gated product that no activation follows, each with
    its first column there.
    """
    gated = producer(linear_input.value, "Mul")
    if gated is None:
        return None
    for value in gated.inputs:
        if value is None or only_user(value) is None:
            continue
        split = producer(value, "Split")
        start = _start(split, value) if split is not None else 0
        parameters = projection_parameters(split.inputs[0] if split is not None else value)
        if start is None:
            continue
        ranks = [len(shape) for value, shape in parameters if value.is_initializer()]
        end = start + linear_input.channels
        if ranks in ([2], [1, 2]) and all(shape[-1] >= end for _, shape in parameters):
            return [(parameter, start) for parameter, _ in parameters]
    return None


def _start(split: ir.Node, value: ir.Value) -> int | None:
    """Return the first column of one output of a Split along the last axis."""
    axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
    sizes = constant(split.inputs[1]) if len(split.inputs) > 1 else None
    if sizes is None or axis not in (-1, rank(value) - 1):
        return None
    return int(sizes[: list(split.outputs).index(value)].sum())


def _rescale(value: ir.Value, factors: Array) -> None:
    transform_weight(value, lambda array: array * factors)


def _rescale_columns(value: ir.Value, start: int, factors: Array) -> None:
    """Multiply some columns (the last axis) of a weight, or entries of a bias."""

    def rescale(array: Array) -> Array:
        all_factors = np.ones(array.shape[-1], np.float32)
        all_factors[start : start + len(factors)] = factors
        return np.asarray(array * all_factors)

    transform_weight(value, rescale)


def _rescale_input(graph: ir.Graph, node: ir.Node, index: int, factors: Array) -> None:
    """Multiply a constant input of ``node``. Its other users read the old values."""
    value = node.inputs[index]
    assert value is not None
    if len(value.uses()) > 1:
        value = initializer(graph, f"{value.name}.{node.name}.smooth", value.const_value)
        node.replace_input_with(index, value)
    _rescale(value, factors)
